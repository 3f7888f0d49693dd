import type { Log, LogFields } from '@flotilla/control';
import type { Progress } from './progress.ts';

/**
 * The log of the control plane. While that starts, what it says is also shown to the person who waits: most of a start
 * on a slow machine is spent in it, and its warnings would lie unread in a file.
 *
 *     starting: shown and written ── started() ──▶ written only
 */
export class StartLog implements Log {
  readonly #log: Log;
  #progress: Progress | undefined;

  constructor(log: Log, progress: Progress) {
    this.#log = log;
    this.#progress = progress;
  }

  started(): void {
    this.#progress = undefined;
  }

  debug(fields: LogFields, message: string): void {
    this.#log.debug(fields, message);
  }

  info(fields: LogFields, message: string): void {
    this.#log.info(fields, message);
    this.#progress?.tell(message);
  }

  warn(fields: LogFields, message: string): void {
    this.#log.warn(fields, message);
    this.#progress?.warn(message);
  }

  error(fields: LogFields, message: string): void {
    this.#log.error(fields, message);
  }
}
