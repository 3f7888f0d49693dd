import type { Command } from 'commander';

/** Examples below a command's help: what is typed, and what comes of it. */
export function withExamples(command: Command, ...examples: (readonly [string, string])[]): Command {
  return command.addHelpText('after', () => {
    const lines = examples.map(([line, result]) => `  $ ${line}\n${wrapped(command, result, 6)}`);
    return `\nExamples:\n${lines.join('\n')}`;
  });
}

/** A paragraph below the help. */
export function withNote(command: Command, text: string): Command {
  return command.addHelpText('after', () => `\n${wrapped(command, text, 0)}`);
}

/** What the words mean that an option takes. */
export function withWords(command: Command, title: string, words: (readonly [string, string])[]): Command {
  const columns = Math.max(...words.map(([word]) => word.length));
  return command.addHelpText('after', () => {
    const help = command.createHelp();
    help.helpWidth = widthOf(command);
    return `\n${title}:\n${words.map(([word, meaning]) => help.formatItem(word, columns, meaning, help)).join('\n')}`;
  });
}

/** As wide as the rest of the help. A line that is typed is not wrapped: it is copied. */
function wrapped(command: Command, text: string, indent: number): string {
  const lines = command.createHelp().boxWrap(text, widthOf(command) - indent);
  return lines.replaceAll(/^/gm, ' '.repeat(indent));
}

function widthOf(command: Command): number {
  return command.configureOutput().getOutHelpWidth?.() ?? 80;
}

/** Commands of which a group runs one when none is named: `flotilla nodes` is `flotilla nodes list`. */
const DEFAULT_VERB: Record<string, string> = {
  nodes: 'list',
  jobs: 'list',
  models: 'list',
  keys: 'list',
  tokens: 'list',
  providers: 'list',
  routes: 'list',
};

/**
 * Puts the default verb in. Commander's own default commands would take a mistyped verb for an argument, and there
 * would be no "did you mean".
 */
export function withDefaultVerb(argv: readonly string[]): string[] {
  const [group = '', verb] = argv;
  const fallback = Object.hasOwn(DEFAULT_VERB, group) ? DEFAULT_VERB[group] : undefined;
  const named = verb !== undefined && !verb.startsWith('-');
  if (fallback === undefined || named || verb === '--help' || verb === '-h') return [...argv];
  return [group, fallback, ...argv.slice(1)];
}

/** The command that lists what there is of these: a `node`, or an `enrolment token`. */
export function listOf(noun: string): string | undefined {
  const group = `${noun.split(' ').at(-1)!}s`;
  return Object.hasOwn(DEFAULT_VERB, group) ? `flotilla ${group}` : undefined;
}
