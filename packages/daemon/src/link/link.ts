import {
  type Clock,
  linkStood,
  nextReconnect,
  type Random,
  type Reconnect,
  RECONNECT_START,
  type Timer,
  type Timings,
  timings,
} from '@flotilla/core';
import { Agent } from 'undici';
import type { FromLink, LinkThreadData, ToLink } from '../threads.ts';
import { Attempts } from './attempts.ts';
import { Backends } from './backends.ts';
import { Deadlines } from './deadlines.ts';
import { Guard } from './guard.ts';
import { type Ending, judgeEnding } from './refusal.ts';
import { Reports } from './reports.ts';
import { Session, type SessionHost } from './session.ts';
import { Slots } from './slots.ts';

/**
 * The node's side of the link: one session after another, and what must outlive them.
 *
 *     waiting ──delay──▶ in a session ──ended──▶ waiting
 *        │                     └─ revoked, superseded, no protocol in common ──▶ stopped
 *        └── drained ──────────┴─────────────────────────────────────────────────▲
 *
 * Moved by: the session's end, the reconnect rule's timer, `drain` from the main thread. Attempts, slots and the guard
 * of the lease live through all of it; a crash of the thread loses them, and the control plane finds that out from the
 * inventory of the thread that follows.
 */
export interface LinkOptions {
  data: LinkThreadData;
  clock: Clock;
  random: Random;
  lease_clock: () => number;
  post: (message: FromLink) => void;
}

/** H until the control plane has told it. */
const FIRST_HEARTBEAT_MS = 5000;

export class Link implements SessionHost {
  readonly data: LinkThreadData;
  readonly clock: Clock;
  readonly random: Random;
  readonly lease_clock: () => number;
  readonly slots: Slots;
  readonly attempts: Attempts;
  readonly guard: Guard;
  timings: Timings = timings(FIRST_HEARTBEAT_MS);
  readonly #post: (message: FromLink) => void;
  readonly #agent: Agent;
  readonly #deadlines: Deadlines;
  readonly #backends: Backends;
  readonly #reports: Reports;
  #reconnect: Reconnect = RECONNECT_START;
  #session: Session | null = null;
  #redial: Timer | null = null;
  #drain_timer: Timer | null = null;
  #drain_reason: string | null = null;
  #stopped = false;

  constructor(options: LinkOptions) {
    const { data, clock, random, lease_clock, post } = options;
    this.data = { ...data };
    this.clock = clock;
    this.random = random;
    this.lease_clock = lease_clock;
    this.#post = post;
    this.#agent = new Agent({
      connect: { timeout: data.connect_timeout_ms },
      // Deadlines are the relay's own: exact, and one timer for all requests.
      headersTimeout: 0,
      bodyTimeout: 0,
      allowH2: false,
    });
    this.#deadlines = new Deadlines(clock);
    this.slots = new Slots(data.descriptor.pools);
    this.#backends = new Backends(data.backends, this.user_agent);
    this.#reports = new Reports({
      clock,
      post,
      pools: () => this.slots.load(),
      attempts: () => this.attempts.load(),
    });
    this.attempts = new Attempts({
      agent: this.#agent,
      clock,
      deadlines: this.#deadlines,
      backends: this.#backends,
      slots: this.slots,
      changed: () => this.#workChanged(),
      ended: (attempt, done) => this.#reports.ended(attempt, done),
      dropped: (attempt) => this.#reports.dropped(attempt),
    });
    this.guard = new Guard(clock, lease_clock, {
      fence: () => this.#fence(),
      dropAttached: () => this.attempts.releaseAll(),
    });
  }

  get user_agent(): string {
    return `flotilla-daemon/${this.data.version}`;
  }

  get draining(): boolean {
    return this.#drain_reason !== null;
  }

  start(): void {
    this.#session = new Session(this);
  }

  /** A message of the main thread. */
  hear(message: ToLink): void {
    if (this.#stopped) return;
    switch (message.type) {
      case 'descriptor':
        this.data.descriptor = message.descriptor;
        this.data.descriptor_hash = message.descriptor_hash;
        this.data.backends = message.backends;
        this.data.health = message.health;
        this.slots.resize(message.descriptor.pools);
        this.#backends.replace(message.backends);
        this.#reports.forgetServed();
        this.#session?.sendDescriptor();
        this.#session?.beatNow();
        this.#reports.loadChanged();
        return;
      case 'health':
        this.data.health = message.health;
        this.#session?.beatNow();
        return;
      case 'drain':
        this.#drain(message.deadline_ms, message.reason);
        return;
    }
  }

  // ── For the session ──

  post(message: FromLink): void {
    this.#post(message);
  }

  up(): void {
    this.#reports.loadChanged();
    this.#stopIfDrained();
  }

  ended(session: Session, ending: Ending, up_ms: number | null): void {
    if (session !== this.#session) return;
    this.#session = null;
    this.attempts.left();
    if (this.#stopped) return;
    const refusal = judgeEnding(ending);
    if (refusal.next === 'stop') {
      void this.#stop(refusal.why, refusal.message);
      return;
    }
    if (up_ms !== null) this.guard.linkDown();
    const fresh = refusal.next === 'afresh';
    const from = fresh ? RECONNECT_START : linkStood(this.#reconnect, up_ms ?? 0);
    const next = nextReconnect(from, this.random.next(), refusal.next === 'slow' ? 'slow' : 'normal');
    this.#reconnect = next.state;
    this.#redial = this.clock.after(next.delay_ms, () => this.start());
    this.#post({ type: 'disconnected', reason: refusal.message, retry_in_ms: Math.round(next.delay_ms) });
    this.#stopIfDrained();
  }

  // ── Endings ──

  #workChanged(): void {
    this.#reports.loadChanged();
    // Not at once: whoever reports the change has still to say its own last word on the link.
    if (this.draining) setImmediate(() => this.#stopIfDrained());
  }

  #fence(): void {
    const attempts = this.attempts.fence();
    if (attempts > 0) this.#post({ type: 'fenced', attempts });
  }

  #drain(deadline_ms: number, reason: string): void {
    this.#drain_reason = reason;
    this.attempts.draining = true;
    this.#drain_timer?.cancel();
    this.#drain_timer = this.clock.after(deadline_ms, () => {
      this.attempts.releaseAll();
      void this.#stop('drained', reason);
    });
    this.#session?.beatNow();
    this.#stopIfDrained();
  }

  #stopIfDrained(): void {
    if (this.#drain_reason === null || this.attempts.live > 0) return;
    // A link that is being made is given the chance to say goodbye on.
    if (this.#session !== null && !this.#session.up) return;
    void this.#stop('drained', this.#drain_reason);
  }

  async #stop(why: Extract<FromLink, { type: 'stopped' }>['why'], message: string): Promise<void> {
    if (this.#stopped) return;
    this.#stopped = true;
    this.#redial?.cancel();
    this.#drain_timer?.cancel();
    this.guard.stop();
    const left = this.#session?.leave(why === 'drained' ? message : null);
    this.attempts.left();
    this.attempts.fence();
    this.#deadlines.stop();
    this.#reports.stop();
    await Promise.allSettled([left, this.#agent.destroy()]);
    this.#post({ type: 'stopped', why, message });
  }
}
