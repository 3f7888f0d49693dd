import type { ChildProcess } from 'node:child_process';
import { type Outcome, start } from '../../packages/cli/src/testing/command.ts';

/** A real process of the product that goes on until it is stopped, with everything it printed. */
export interface Program {
  readonly child: ChildProcess;
  readonly pid: number;
  /** Standard output and error, as it came. */
  output(): string;
  /** Standard output alone. */
  stdout(): string;
  readonly ended: Promise<Outcome>;
  signal(signal: NodeJS.Signals): void;
  /** Asks it to stop and waits; kills it when it does not. */
  stop(): Promise<void>;
}

const STOP_WITHIN_MS = 10_000;

/** Starts `flotilla …`. The environment is this one's without any setting of the product. */
export function flotilla(
  args: string[],
  env: Record<string, string> = {},
  node_options?: readonly string[],
): Program {
  const { child, output, ended } = start(args, env, node_options);
  child.stdin?.end();
  return {
    child,
    pid: child.pid!,
    output: () => output.all,
    stdout: () => output.stdout,
    ended,
    signal: (signal) => void child.kill(signal),
    async stop() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      child.kill('SIGCONT');
      child.kill('SIGTERM');
      const killer = setTimeout(() => child.kill('SIGKILL'), STOP_WITHIN_MS);
      await ended;
      clearTimeout(killer);
    },
  };
}
