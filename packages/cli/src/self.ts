import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { openLog } from './log-file.ts';

export const LAUNCHER = fileURLToPath(new URL('../bin/flotilla.js', import.meta.url));

export interface SelfOptions {
  args: string[];
  /** Its stdout and stderr go here; the log before it is kept as `….1`. */
  log: string;
  environment?: Record<string, string>;
  /** A part ends with this process (`parentGone`); what is no part outlives it. */
  part: boolean;
}

/**
 * Starts this program again with other arguments. It gets a process group of its own: Ctrl-C in the terminal reaches
 * only the process the person started, which then stops its parts in the right order.
 */
export function startSelf({ args, log, environment, part }: SelfOptions): ChildProcess {
  const output = openLog(log);
  try {
    return spawn(process.execPath, [LAUNCHER, ...args], {
      detached: true,
      env: { ...process.env, ...environment },
      stdio: part ? ['ignore', output, output, 'ipc'] : ['ignore', output, output],
    });
  } finally {
    closeSync(output);
  }
}
