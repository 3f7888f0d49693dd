import { once } from 'node:events';

/**
 * One Ctrl-C can arrive twice: the terminal sends it to all of its processes, and npm, being one of them, hands it on.
 * Taken for a second one, it would end the process in the midst of its work.
 */
const SAME_KEY_PRESS_MS = 500;

/** SIGINT (Ctrl-C), SIGTERM or SIGHUP; a second one ends the process at once, for whoever will not wait. */
export function stopSignal(): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    let asked = false;
    let heeds_second = false;
    const stop = (signal: NodeJS.Signals) => {
      if (heeds_second) process.exit(1);
      if (asked) return;
      asked = true;
      // Where the process was busy for longer, what has come meanwhile is heard before `setImmediate`.
      setTimeout(() => setImmediate(() => (heeds_second = true)), SAME_KEY_PRESS_MS).unref();
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
