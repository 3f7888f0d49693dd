import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';

/** A process of the bench's own, or of a peer, that goes on until it is stopped. */
export interface Script {
  readonly pid: number;
  /** Waits until it has said what matches. @throws when it ends, or two minutes pass, before that */
  said(pattern: RegExp): Promise<RegExpExecArray>;
  stop(): Promise<void>;
}

const running = new Set<ChildProcess>();
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

/** It does not outlive the bench, however that ends. */
export function track(child: ChildProcess): void {
  running.add(child);
  child.once('exit', () => running.delete(child));
}

const SAID_WITHIN_MS = 120_000;
/** What the product sets for itself (docs/decisions/026-pretenuring.md) floors and peers have too. */
const NO_PRETENURING = '--no-allocation-site-pretenuring';

export function startScript(path: string, env: Record<string, string> = {}, args: string[] = []): Script {
  const file = fileURLToPath(new URL(path, import.meta.url));
  const child = spawn(process.execPath, [NO_PRETENURING, file, ...args], {
    env: { PATH: process.env['PATH'], HOME: process.env['HOME'], ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  track(child);
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output = (output + text).slice(-65_536);
      child.emit('said');
    });
  }
  return {
    pid: child.pid!,
    async said(pattern) {
      const late = AbortSignal.timeout(SAID_WITHIN_MS);
      for (;;) {
        const found = pattern.exec(output);
        if (found !== null) return found;
        if (child.exitCode !== null) throw new Error(`${path} ended: ${output}`);
        await Promise.race([
          once(child, 'said', { signal: late }),
          once(child, 'close', { signal: late }),
        ]).catch(() => {
          throw new Error(`${path} has not said ${pattern} within ${SAID_WITHIN_MS} ms: ${output}`);
        });
      }
    },
    stop: () => stop(child),
  };
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'close');
  child.kill('SIGTERM');
  const killer = setTimeout(() => child.kill('SIGKILL'), 5000);
  await ended;
  clearTimeout(killer);
}

/** Starts one that says `listening PORT`. */
export async function startServer(
  path: string,
  env: Record<string, string> = {},
): Promise<Script & { port: number }> {
  const script = startScript(path, env);
  const [, port] = await script.said(/listening (\d+)/);
  return { ...script, port: Number(port) };
}
