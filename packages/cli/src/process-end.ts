import { once } from 'node:events';
// Not all of the daemon: each command would wait for it to load.
import { createStopRequests } from '@flotilla/daemon/stop-requests';

/** SIGINT (Ctrl-C), SIGTERM or SIGHUP; a second one ends the process at once, for whoever will not wait. */
export function stopSignal(): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    const request = createStopRequests((delay_ms, run) => setTimeout(run, delay_ms).unref());
    const stop = (signal: NodeJS.Signals) => {
      if (request() === 'at once') process.exit(1);
      resolve(signal);
    };
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, stop);
  });
}

/**
 * Resolves when the process that started this one as its part is no more, however it ended: its end of the channel
 * closes. Never resolves in a process that was started by hand.
 */
export async function parentGone(): Promise<void> {
  if (process.send === undefined) return new Promise(() => undefined);
  if (!process.connected) return;
  const gone = once(process, 'disconnect');
  // Listening alone would keep this process running after its work has ended.
  process.channel?.unref();
  await gone;
}
