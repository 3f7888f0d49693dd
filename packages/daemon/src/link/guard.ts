import { ATTACHED_DROP_MS, type Clock, type Timer, type Timings } from '@flotilla/core';
import { fenceIn, type Lease, NO_LEASE, renewLease } from './lease.ts';

/**
 * Watches over what this node may still do, link or no link: at the fence it stops everything, and 6 s after its link
 * closed it drops what a client waited for. Timers run by the steady clock and stand still in sleep; so every beat
 * also `check`s the lease clock, which does not.
 */
export interface GuardEvents {
  fence(): void;
  dropAttached(): void;
}

export class Guard {
  readonly #clock: Clock;
  readonly #lease_clock: () => number;
  readonly #events: GuardEvents;
  #lease: Lease = NO_LEASE;
  #fence_timer: Timer | null = null;
  #drop_timer: Timer | null = null;

  constructor(clock: Clock, lease_clock: () => number, events: GuardEvents) {
    this.#clock = clock;
    this.#lease_clock = lease_clock;
    this.#events = events;
  }

  /** A beat, or the registration, that was sent at `sent_ms` has been acknowledged. */
  renew(sent_ms: number, timings: Timings): void {
    this.#lease = renewLease(this.#lease, sent_ms, timings);
    this.check();
  }

  /** Fences if it is time; else sees to it that it is noticed when it is. */
  check(): void {
    this.#fence_timer?.cancel();
    this.#fence_timer = null;
    const left_ms = fenceIn(this.#lease, this.#lease_clock());
    if (left_ms === Number.POSITIVE_INFINITY) return;
    if (left_ms > 0) {
      this.#fence_timer = this.#clock.after(left_ms, () => this.check());
      return;
    }
    this.#lease = NO_LEASE;
    this.#events.fence();
  }

  linkUp(): void {
    this.#drop_timer?.cancel();
    this.#drop_timer = null;
  }

  linkDown(): void {
    this.#drop_timer ??= this.#clock.after(ATTACHED_DROP_MS, () => {
      this.#drop_timer = null;
      this.#events.dropAttached();
    });
  }

  stop(): void {
    this.linkUp();
    this.#fence_timer?.cancel();
    this.#fence_timer = null;
    this.#lease = NO_LEASE;
  }
}
