import { existsSync, globSync, readFileSync } from 'node:fs';
import { basename, dirname, join, resolve, sep } from 'node:path';
import { describe, expect, test } from 'vitest';

const root = resolve(import.meta.dirname, '..');

/**
 * Who may import whom: protocol <- core <- control <- cli; daemon imports protocol
 * and core; sdk imports protocol's types; dashboard imports sdk.
 */
const mayImport: Record<string, { values: string[]; types: string[] }> = {
  protocol: { values: [], types: [] },
  core: { values: ['protocol'], types: [] },
  control: { values: ['protocol', 'core'], types: [] },
  daemon: { values: ['protocol', 'core'], types: [] },
  sdk: { values: [], types: ['protocol'] },
  cli: { values: ['protocol', 'control', 'daemon', 'sdk'], types: [] },
  dashboard: { values: ['sdk'], types: [] },
};

const maxLines = 600;
/** A suite is read from its names; it may be longer than what it proves. */
const maxTestLines = 750;
const bannedFolders = new Set(['utils', 'helpers', 'common', 'misc', 'lib']);

function list(...patterns: string[]): string[] {
  return globSync(patterns, {
    cwd: root,
    exclude: (path) => basename(path) === 'node_modules' || basename(path) === 'dist',
  }).sort();
}

const packages = list('packages/*/package.json').map((path) => basename(dirname(path)));
const sources = list('packages/*/{src,bin}/**/*.{ts,tsx,js}', '{tests,bench,tools}/**/*.{ts,js}');

/** Every module specifier in a file, with what follows the word `import` or `export`. */
function imports(source: string): { specifier: string; typeOnly: boolean; dynamic: boolean }[] {
  const code = source.replace(/\/\*[\s\S]*?\*\//g, '').replace(/^\s*\/\/.*$/gm, '');
  const statements = code.matchAll(
    /(?:^|[;}\n])\s*(?:import|export)\s+(type\s)?(?:[\w$*{}\s,]*?\sfrom\s*|[\w$*{},\s]*?\}\s*from\s*)?(['"])([^'"\n]+)\2/g,
  );
  const dynamic = code.matchAll(/\b(?:import|require)\s*\(\s*(['"`])([^'"`\n]+)\1/g);
  return [
    ...[...statements].map((match) => ({
      specifier: match[3] ?? '',
      typeOnly: match[1] !== undefined,
      dynamic: false,
    })),
    ...[...dynamic].map((match) => ({ specifier: match[2] ?? '', typeOnly: false, dynamic: true })),
  ];
}

/** The package of this repository that a specifier names, or undefined. */
function ownPackage(specifier: string): string | undefined {
  if (specifier === 'flotilla' || specifier.startsWith('flotilla/')) return 'cli';
  return /^@flotilla\/([^/]+)/.exec(specifier)?.[1];
}

function importProblems(name: string, file: string, source: string): string[] {
  const allowed = mayImport[name];
  if (allowed === undefined) return [`${file}: package ${name} is not in the table`];
  const home = resolve(root, 'packages', name);
  return imports(source).flatMap(({ specifier, typeOnly }) => {
    if (specifier.startsWith('.')) {
      const target = resolve(root, dirname(file), specifier);
      return target.startsWith(home + sep) ? [] : [`${file}: '${specifier}' leaves the package`];
    }
    if (specifier.startsWith('/') || specifier.startsWith('file:')) {
      return [`${file}: '${specifier}' is an absolute path`];
    }
    const other = ownPackage(specifier);
    if (other === undefined || allowed.values.includes(other)) return [];
    if (allowed.types.includes(other)) {
      return typeOnly ? [] : [`${file}: '${specifier}' may be imported with \`import type\` only`];
    }
    return [`${file}: ${name} may not import '${specifier}'`];
  });
}

describe('imports run one way', () => {
  test('the scanner sees every form of import', () => {
    const source = [
      "import 'a';",
      "import b from 'b';",
      "import { c1, type c2 } from 'c';",
      "import type { d } from 'd';",
      "import * as e from 'e';",
      "export * from 'f';",
      "export { g } from 'g';",
      "export type { h } from 'h';",
      "import {\n  i1,\n  i2,\n} from 'i';",
      "const j = await import('j');",
      "// import 'not';",
      "/* import 'neither'; */",
      "const text = 'from nowhere';",
      "export const k = 'k';",
    ].join('\n');
    const found = imports(source);
    expect(found.map(({ specifier }) => specifier)).toEqual([
      'a',
      'b',
      'c',
      'd',
      'e',
      'f',
      'g',
      'h',
      'i',
      'j',
    ]);
    expect(found.filter(({ typeOnly }) => typeOnly).map(({ specifier }) => specifier)).toEqual(['d', 'h']);
  });

  test('the check finds what is forbidden', () => {
    const file = (name: string) => `packages/${name}/src/x.ts`;
    const problems = (name: string, source: string) => importProblems(name, file(name), source);
    expect(problems('core', "import { a } from '@flotilla/control';")).toHaveLength(1);
    expect(problems('core', "import { a } from '../../protocol/src/index.ts';")).toHaveLength(1);
    expect(problems('sdk', "import { a } from '@flotilla/protocol';")).toHaveLength(1);
    expect(problems('sdk', "import type { a } from '@flotilla/protocol';")).toEqual([]);
    expect(problems('daemon', "import 'flotilla';")).toHaveLength(1);
    expect(problems('daemon', "import { a } from '@flotilla/core';\nimport { b } from './b.ts';")).toEqual(
      [],
    );
  });

  test.each(packages)('%s', (name) => {
    expect(mayImport, 'every package has a row in the table').toHaveProperty(name);
    const files = sources.filter((path) => path.startsWith(`packages/${name}/`));
    const problems = files.flatMap((file) =>
      importProblems(name, file, readFileSync(resolve(root, file), 'utf8')),
    );
    expect(problems).toEqual([]);
  });

  test.each(packages)('%s declares no dependency on a package it may not import', (name) => {
    const manifest = JSON.parse(readFileSync(resolve(root, 'packages', name, 'package.json'), 'utf8')) as {
      dependencies?: Record<string, string>;
      devDependencies?: Record<string, string>;
    };
    const own = (dependencies = {}) => Object.keys(dependencies).flatMap((key) => ownPackage(key) ?? []);
    const allowed = mayImport[name] ?? { values: [], types: [] };
    expect(allowed.values).toEqual(expect.arrayContaining(own(manifest.dependencies)));
    expect([...allowed.values, ...allowed.types]).toEqual(
      expect.arrayContaining(own(manifest.devDependencies)),
    );
  });
});

/** What is loaded with a file: all that it imports, and what that imports, but nothing that is imported when it is needed. */
function foreignPackages(file: string, seen = new Set<string>()): string[] {
  if (seen.has(file)) return [];
  seen.add(file);
  return imports(readFileSync(resolve(root, file), 'utf8'))
    .filter(({ typeOnly, dynamic }) => !typeOnly && !dynamic)
    .flatMap(({ specifier }) => {
      const own = /^@flotilla\/([^/]+)(?:\/(.+))?$/.exec(specifier);
      if (own !== null) return foreignPackages(`packages/${own[1]}/src/${own[2] ?? 'index'}.ts`, seen);
      if (specifier.startsWith('.')) return foreignPackages(join(dirname(file), specifier), seen);
      return specifier.startsWith('node:') ? [] : [specifier];
    });
}

describe('a start loads what it needs', () => {
  test.each([
    // Not: the bus, the client of providers, what sends traces, the embedded store.
    ['packages/control/src/index.ts', ['fastify', 'pg', 'pino', 'prom-client', 'ws', 'zod']],
    // Not: the files of its commands, and the schemas of what they say.
    ['packages/cli/src/main.ts', ['commander']],
  ])('%s', (file, needed) => {
    expect([...new Set(foreignPackages(file))].toSorted()).toEqual(needed);
  });
});

describe('layout', () => {
  test('sources are found', () => {
    expect(packages.length).toBeGreaterThanOrEqual(6);
    expect(sources).toContain('tests/layout.test.ts');
    expect(sources.every((path) => existsSync(resolve(root, path)))).toBe(true);
  });

  test('no folder is named for being left over', () => {
    const banned = sources.filter((path) =>
      dirname(path)
        .split(sep)
        .some((part) => bannedFolders.has(part)),
    );
    expect(banned).toEqual([]);
  });

  test(`no source file has more than ${maxLines} lines`, () => {
    const long = sources
      .map((path) => ({
        path,
        lines: readFileSync(resolve(root, path), 'utf8').trimEnd().split('\n').length,
      }))
      .filter(({ path, lines }) => lines > (path.endsWith('.test.ts') ? maxTestLines : maxLines));
    expect(long).toEqual([]);
  });

  test('no source names a place on the machine it was written on', () => {
    // Alternatives in brackets, so that this file does not find itself.
    const place = /\.\.\/(?:shared)\b|(?<![\w.~-])\/(?:work|home|root|Users)\/\w/;
    const found = sources.flatMap((path) => {
      const match = place.exec(readFileSync(resolve(root, path), 'utf8'));
      return match === null ? [] : [`${path}: ${match[0]}`];
    });
    expect(found).toEqual([]);
  });

  test('whoever takes over an answer takes its begun headers along', () => {
    const read = (path: string) => readFileSync(resolve(root, path), 'utf8');
    const takers = sources.filter((path) => /reply\.hijack\(\)/.test(read(path)));
    expect(takers.length).toBeGreaterThan(3);
    expect(takers.filter((path) => !/\bbegunHeaders\(reply\)/.test(read(path)))).toEqual([]);
  });
});
