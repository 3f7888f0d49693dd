import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';

const LAUNCHER = fileURLToPath(new URL('../../bin/flotilla.js', import.meta.url));

/**
 * Without the optimising compiler for WebAssembly: it spends 2 s and 600 MB on one function of PGlite whenever a store
 * has been open for a moment, and a process does not end before that. The tests open some hundred stores.
 */
const NODE_OPTIONS = ['--liftoff-only'];

export interface Outcome {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export interface Running {
  child: ChildProcess;
  /** What it has written so far; `all` in the order in which it came. */
  output: { stdout: string; stderr: string; all: string };
  ended: Promise<Outcome>;
}

/**
 * Starts the program as a person would: through its launcher, as a process of its own. The environment is this one's
 * without any setting of the product.
 * @param node_options of Node itself; those of the tests, if none are given
 */
export function start(
  args: string[],
  environment: Record<string, string> = {},
  node_options: readonly string[] = NODE_OPTIONS,
): Running {
  const inherited = Object.entries(process.env).filter(
    ([name]) => !/^(FLOTILLA_|DATABASE_URL|NATS_URL|PORT$|VITEST|NODE_OPTIONS|.*_PROXY$)/i.test(name),
  );
  const child = spawn(process.execPath, [...node_options, LAUNCHER, ...args], {
    env: { ...Object.fromEntries(inherited), NO_COLOR: '1', ...environment },
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  const output = { stdout: '', stderr: '', all: '' };
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].setEncoding('utf8').on('data', (text: string) => {
      output[name] += text;
      output.all += text;
    });
  }
  const ended = once(child, 'close').then(() => ({
    code: child.exitCode,
    signal: child.signalCode,
    stdout: output.stdout,
    stderr: output.stderr,
  }));
  return { child, output, ended };
}

/** Runs a command to its end. */
export function run(args: string[], environment: Record<string, string> = {}, input = ''): Promise<Outcome> {
  const { child, ended } = start(args, environment);
  child.stdin?.end(input);
  return ended;
}
