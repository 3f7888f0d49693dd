import type { ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { CommandError } from '../failure.ts';
import { logTail } from '../log-file.ts';
import { startSelf } from '../self.ts';
import { note, print, printJson } from '../terminal/output.ts';
import type { LocalStatus } from './status.ts';

const CONNECT_MS = 30_000;
const LOOK_EVERY_MS = 100;

/** Starts the daemon in the background and returns when it is connected, or says why it is not. */
export async function startDetached(state_dir: string, name: string, json: boolean): Promise<void> {
  const running = await ask(state_dir);
  if (running !== undefined) {
    if (json) return printJson({ event: 'running', pid: running.pid, state_dir });
    return note(`Its daemon already runs (process ${running.pid}). See it: ${statusCommand(state_dir)}`);
  }
  const log = join(state_dir, 'node.log');
  const child = startSelf({ args: ['node', 'run', '--state-dir', state_dir], log, part: false });
  if (!json) note('Waiting until it is connected…');
  const link = await connected(state_dir, child);
  if (link === 'ended') {
    throw new CommandError(`The daemon ended at once. The end of ${log}:\n${await logTail(log)}`);
  }
  child.unref();
  if (link !== 'connected') {
    const message = `${name} runs in the background (process ${child.pid}), but is not connected yet: ${link}`;
    throw new CommandError(message, `It goes on trying. See how it does: ${statusCommand(state_dir)}`);
  }
  if (json) return printJson({ event: 'connected', pid: child.pid, state_dir, log });
  print(`${name} is connected; it runs in the background (process ${child.pid}).`);
  print(`  log     ${log}`);
  print(`  status  ${statusCommand(state_dir)}`);
  print(`  stop    flotilla node drain --state-dir ${state_dir}`);
}

function statusCommand(state_dir: string): string {
  return `flotilla node status --state-dir ${state_dir}`;
}

/** `connected`, `ended`, or the reason why it is not connected yet. */
async function connected(state_dir: string, child: ChildProcess): Promise<string> {
  const give_up_at = performance.now() + CONNECT_MS;
  let reason = 'its daemon does not answer.';
  while (performance.now() < give_up_at) {
    if (child.exitCode !== null || child.signalCode !== null) return 'ended';
    const status = await ask(state_dir);
    if (status?.link.state === 'connected') return 'connected';
    reason = status?.link.reason ?? reason;
    await wait(LOOK_EVERY_MS);
  }
  return reason;
}

async function ask(state_dir: string): Promise<LocalStatus | undefined> {
  const { callDaemon, DaemonCallError } = await import('@flotilla/daemon/local');
  try {
    return (await callDaemon(state_dir, { verb: 'status' })) as unknown as LocalStatus;
  } catch (error) {
    if (error instanceof DaemonCallError && error.code !== 'forbidden') return undefined;
    throw error;
  }
}
