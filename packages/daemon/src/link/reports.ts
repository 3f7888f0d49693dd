import type { Clock, RelayDone, Timer } from '@flotilla/core';
import type { AttemptLoad, EndedAttempt, FromLink } from '../threads.ts';
import type { Attempt } from './attempt.ts';
import type { PoolLoad } from './slots.ts';

/** Load is told this long after it changed, so that a burst is one message; the last state is always told. */
const LOAD_DELAY_MS = 200;
/** `backend_served` is told this often for each backend and model. */
const SERVED_EVERY_MS = 1000;

export interface ReportSources {
  clock: Clock;
  post: (message: FromLink) => void;
  pools: () => PoolLoad[];
  attempts: () => AttemptLoad[];
}

/** What the link thread tells the main thread about its work. */
export class Reports {
  readonly #sources: ReportSources;
  readonly #served = new Map<string, number>();
  #load_timer: Timer | null = null;
  #ended: EndedAttempt[] = [];

  constructor(sources: ReportSources) {
    this.#sources = sources;
  }

  loadChanged(): void {
    this.#load_timer ??= this.#sources.clock.after(LOAD_DELAY_MS, () => this.#tellLoad());
  }

  ended({ offer }: Attempt, done: RelayDone): void {
    const { post, clock } = this.#sources;
    const { backend, model, operation } = offer;
    const { failure, first_byte_ms, total_ms } = done;
    const outcome = failure === undefined ? 'completed' : failure.code;
    this.#ended.push({ outcome, operation, first_byte_ms, total_ms });
    this.loadChanged();
    if (failure?.unhealthy === true) {
      post({ type: 'backend_failed', backend, model, reason: failure.message });
    } else if (failure === undefined && (done.status ?? 0) < 300) {
      const key = `${backend}\n${model}\n${operation}`;
      const now_ms = clock.now_ms();
      if (now_ms - (this.#served.get(key) ?? Number.NEGATIVE_INFINITY) < SERVED_EVERY_MS) return;
      this.#served.set(key, now_ms);
      post({ type: 'backend_served', backend, model, operation });
    }
  }

  dropped({ offer, accepted_at }: Attempt): void {
    const total_ms = this.#sources.clock.now_ms() - accepted_at;
    const { operation } = offer;
    this.#ended.push({ outcome: 'released', operation, first_byte_ms: null, total_ms });
    this.loadChanged();
  }

  /** The backends changed: what was told of the old ones counts no more. */
  forgetServed(): void {
    this.#served.clear();
  }

  /** Tells what is still to be told. */
  stop(): void {
    if (this.#load_timer === null) return;
    this.#load_timer.cancel();
    this.#tellLoad();
  }

  #tellLoad(): void {
    this.#load_timer = null;
    const { post, pools, attempts } = this.#sources;
    const ended = this.#ended;
    this.#ended = [];
    post({ type: 'load', pools: pools(), attempts: attempts(), ended });
  }
}
