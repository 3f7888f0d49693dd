import { globSync, readFileSync } from 'node:fs';
import { basename, resolve } from 'node:path';
import { describe, expect, test } from 'vitest';
import { complaintOf, READ_VARIABLES } from './support/command-line.ts';

/** What a page tells somebody to type is what the program takes: each command is parsed by it, and none is run. */
const root = resolve(import.meta.dirname, '..');
const onDisk = (path: string) => readFileSync(resolve(root, path), 'utf8');
const guides = globSync('docs/guides/*.md', { cwd: root }).toSorted();
const pages = ['README.md', 'CONTRIBUTING.md', ...guides, ...globSync('deploy/**/*.md', { cwd: root })];

describe('the guides', () => {
  test('are those that an owner asks for, and README leads to each', () => {
    const wanted = ['getting-started', 'nodes', 'production', 'security', 'upgrade'];
    expect(guides.map((path) => basename(path, '.md'))).toEqual(expect.arrayContaining(wanted));
    const readme = onDisk('README.md');
    expect(guides.filter((path) => !readme.includes(`](${path})`))).toEqual([]);
  });

  test('have enough commands for this test to mean something', () => {
    expect(pages.flatMap((path) => commandsOf(onDisk(path))).length).toBeGreaterThan(60);
  });

  test.each(pages)('%s: its commands are read by the program', (path) => {
    expect(complaintsOf(commandsOf(onDisk(path)))).toEqual([]);
  });

  test.each(pages)('%s: its variables are read by something', (path) => {
    const named = new Set(onDisk(path).match(/\bFLOTILLA_[A-Z_]*[A-Z]\b/g));
    // The node in shell has a setting of its own.
    const own = new Set([...onDisk(path).matchAll(/\$\{(FLOTILLA_\w+):/g)].map((match) => match[1]!));
    expect([...named].filter((name) => !READ_VARIABLES.has(name) && !own.has(name))).toEqual([]);
  });
});

describe('help and reference', () => {
  test('have examples that the program takes', () => {
    const typed = onDisk('docs/reference/commands.md').match(/^ *\$ .*flotilla.*/gm)!;
    expect(typed.length).toBeGreaterThan(60);
    expect(complaintsOf(typed.flatMap(partsOf).map(wordsOf))).toEqual([]);
  });
});

/** The commands of a page: in its blocks, and where a whole one is quoted in a line. */
function commandsOf(page: string): string[][] {
  let fenced = false;
  const lines = page.replaceAll('\\\n', ' ').split('\n');
  const texts = lines.flatMap((line) => {
    if (/^ *```/.test(line)) fenced = !fenced;
    if (fenced || line.startsWith('    ')) return [line];
    return [...line.matchAll(/`([^`]+)`/g)].map((match) => match[1]!).filter(isWhole);
  });
  return texts.flatMap(partsOf).map(wordsOf);
}

/** `flotilla keys create` may stand for all that begins so; with an argument or an option it is meant to be typed. */
function isWhole(quoted: string): boolean {
  return / (--?\w|[A-Z…<])/.test(quoted);
}

/** Each `flotilla …` of a line: up to a pipe, a file, a comment, or what is done next. */
function partsOf(line: string): string[] {
  const commands = line.replace(/(^| )#.*/, '').matchAll(/(?<![\w./@-])flotilla ([a-z][^|;&)]*)/g);
  return [...commands].map((match) => match[1]!.split(/ [<>] /)[0]!);
}

function complaintsOf(commands: string[][]): string[] {
  return commands.map(complaintOf).filter((complaint) => complaint !== undefined);
}

function wordsOf(text: string): string[] {
  const words = text.match(/(?:"[^"]*"|'[^']*'|[^\s"'])+/g) ?? [];
  return words.map((word) => word.replaceAll(/["']/g, '')).filter((word) => !/^\d*>/.test(word));
}
