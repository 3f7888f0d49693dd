import { Worker } from 'node:worker_threads';
import type { Clock, Log, Timer } from '@flotilla/core';
import type { FromLink, LinkThreadData, ToLink } from './threads.ts';

/**
 * The link thread, seen from the main thread.
 *
 *     idle ──start──▶ up ──stopped (said by the thread)──▶ ended
 *                     │ ▲
 *        crash or exit▼ │ a second after the last start, at the earliest
 *                    waiting ──end()──▶ ended
 *
 * A crash is never silent and never final: the boot id stays, so the control plane lets the new thread in at once, sees
 * from its inventory that the old one's attempts are lost, and moves them. `descriptor`, `health` and whether to drain
 * are kept by the caller and are part of what the new thread is started with.
 */
const RESTART_GAP_MS = 1_000;

export interface LinkHostOptions {
  /** `src/link/thread.ts`, or a test's. */
  script: URL;
  data: () => LinkThreadData;
  clock: Clock;
  log: Log;
  on_message: (message: FromLink) => void;
  on_crash: (reason: string) => void;
}

export class LinkHost {
  readonly #options: LinkHostOptions;
  #worker: Worker | null = null;
  #started_at = 0;
  #timer: Timer | null = null;
  #ended = false;

  constructor(options: LinkHostOptions) {
    this.#options = options;
  }

  start(): void {
    const { script, data, clock } = this.#options;
    this.#started_at = clock.now_ms();
    const worker = new Worker(script, { workerData: data(), name: 'flotilla-link' });
    this.#worker = worker;
    let reason = 'it ended by itself';
    worker.on('message', (message: FromLink) => this.#hear(worker, message));
    worker.on('error', (error: Error) => {
      reason = error.stack ?? error.message;
    });
    worker.on('exit', (code) => this.#exited(worker, `${reason} (code ${code})`));
  }

  post(message: ToLink): void {
    this.#worker?.postMessage(message);
  }

  /** Whether a thread is there to finish and deregister. */
  get up(): boolean {
    return this.#worker !== null;
  }

  /** Ends the thread at once, whatever it does. */
  async end(): Promise<void> {
    this.#ended = true;
    this.#timer?.cancel();
    this.#timer = null;
    await this.#worker?.terminate();
    this.#worker = null;
  }

  #hear(worker: Worker, message: FromLink): void {
    if (worker !== this.#worker) return;
    if (message.type === 'stopped') this.#ended = true;
    this.#options.on_message(message);
  }

  #exited(worker: Worker, reason: string): void {
    if (worker !== this.#worker) return;
    this.#worker = null;
    if (this.#ended) return;
    const { clock, log } = this.#options;
    const wait_ms = Math.max(0, this.#started_at + RESTART_GAP_MS - clock.now_ms());
    log.error(
      { reason, restart_in_ms: Math.round(wait_ms) },
      'The link thread crashed; it is started again.',
    );
    this.#options.on_crash(reason);
    this.#timer = clock.after(wait_ms, () => {
      this.#timer = null;
      if (!this.#ended) this.start();
    });
  }
}
