import type { Command } from 'commander';

/** Examples below a command's help: what is typed, and what comes of it. */
export function withExamples(command: Command, ...examples: (readonly [string, string])[]): Command {
  const lines = examples.map(([line, result]) => `  $ ${line}\n      ${result}`);
  return command.addHelpText('after', `\nExamples:\n${lines.join('\n')}`);
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
