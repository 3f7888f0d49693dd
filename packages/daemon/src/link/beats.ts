import type { Clock, Random, Timer, Timings } from '@flotilla/core';

/**
 * The rhythm of one registered link: when to beat, which beats are unanswered, when the socket counts as dead.
 *
 *     stopped ──start──▶ beating ──2 H without acknowledgement──▶ dead() is called, once
 *                           └──stop──▶ stopped
 */
export interface BeatsEvents {
  /** Send a beat with this number now. */
  beat(seq: number): void;
  dead(): void;
}

export interface AckedBeat {
  /** By the lease clock, when the beat was sent. */
  sent_ms: number;
  rtt_ms: number;
}

export class Beats {
  readonly #clock: Clock;
  readonly #random: Random;
  readonly #lease_clock: () => number;
  readonly #events: BeatsEvents;
  readonly #unanswered = new Map<number, { at_ms: number; lease_ms: number }>();
  #timings: Timings | null = null;
  #last: { seq: number; lease_ms: number } | null = null;
  #next: Timer | null = null;
  #dead: Timer | null = null;
  #seq = 0;

  constructor(clock: Clock, random: Random, lease_clock: () => number, events: BeatsEvents) {
    this.#clock = clock;
    this.#random = random;
    this.#lease_clock = lease_clock;
    this.#events = events;
  }

  /** The link is registered; the registration counts as an acknowledged beat. */
  start(timings: Timings): void {
    this.stop();
    this.#timings = timings;
    this.#plan();
    this.#watch();
  }

  stop(): void {
    this.#timings = null;
    this.#unanswered.clear();
    this.#last = null;
    this.#next?.cancel();
    this.#dead?.cancel();
    this.#next = null;
    this.#dead = null;
  }

  /** One beat at once, because something changed; the rhythm begins again with it. */
  beatNow(): void {
    if (this.#timings === null) return;
    this.#next?.cancel();
    this.#beat();
  }

  /** @returns undefined for a beat that this link did not send, or whose acknowledgement came before */
  acknowledged(seq: number): AckedBeat | undefined {
    const beat = this.#unanswered.get(seq);
    if (beat === undefined) return undefined;
    this.#last = { seq, lease_ms: beat.lease_ms };
    for (const older of this.#unanswered.keys()) if (older <= seq) this.#unanswered.delete(older);
    this.#watch();
    return { sent_ms: beat.lease_ms, rtt_ms: this.#clock.now_ms() - beat.at_ms };
  }

  /** The last acknowledged beat is acknowledged again. @returns when it was sent; undefined: it is another one */
  acknowledgedAgain(seq: number): number | undefined {
    return this.#last?.seq === seq ? this.#last.lease_ms : undefined;
  }

  #beat(): void {
    const seq = ++this.#seq;
    this.#unanswered.set(seq, { at_ms: this.#clock.now_ms(), lease_ms: this.#lease_clock() });
    this.#plan();
    this.#events.beat(seq);
  }

  #plan(): void {
    const { heartbeat_ms, jitter_ms } = this.#timings!;
    this.#next = this.#clock.after(heartbeat_ms + this.#random.next() * jitter_ms, () => this.#beat());
  }

  #watch(): void {
    this.#dead?.cancel();
    this.#dead = this.#clock.after(this.#timings!.socket_dead_ms, () => {
      // A process that stood still finds its timers due before it has read its socket. What lies there comes first:
      // a daemon that was superseded meanwhile must learn that, and not dial again as if its network had failed.
      this.#dead = this.#clock.after(0, () => this.#events.dead());
    });
  }
}
