/** Aborted by Ctrl-C: what is being measured ends, and what was started for it is stopped and dropped. */
export const interrupt = new AbortController();

/** The first time in good order, with nothing kept; the second time at once. */
export function interruptOnSignals(): void {
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.on(signal, () => {
      if (interrupt.signal.aborted) process.exit(130);
      process.stderr.write('Stopping. Once more: at once, and what was made for it stays.\n');
      interrupt.abort(new Error('Interrupted.'));
    });
  }
}
