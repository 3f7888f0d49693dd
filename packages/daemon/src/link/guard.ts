import { ATTACHED_DROP_MS, type Clock, type Timer, type Timings } from '@flotilla/core';
import { fenceIn, type Lease, NO_LEASE, renewLease } from './lease.ts';

/**
 * Watches over what this node may still do, link or no link: at the fence it stops everything, and 6 s after its link
 * closed it drops what a client waited for. Detached work has a lease of its own, which a control plane that has lost
 * its store does not renew: others may give that work away. Timers run by the steady clock and stand still in sleep; so
 * every beat also `check`s the lease clock, which does not.
 */
export interface GuardEvents {
  fence(): void;
  fenceDetached(): void;
  dropAttached(): void;
}

export class Guard {
  readonly #clock: Clock;
  readonly #lease_clock: () => number;
  readonly #events: GuardEvents;
  readonly #leases: { lease: Lease; timer: Timer | null; readonly fence: () => void }[];
  #drop_timer: Timer | null = null;

  constructor(clock: Clock, lease_clock: () => number, events: GuardEvents) {
    this.#clock = clock;
    this.#lease_clock = lease_clock;
    this.#events = events;
    this.#leases = [
      { lease: NO_LEASE, timer: null, fence: () => events.fence() },
      { lease: NO_LEASE, timer: null, fence: () => events.fenceDetached() },
    ];
  }

  /** A beat, or the registration, that was sent at `sent_ms` has been acknowledged: for all work, or for attached work. */
  renew(sent_ms: number, timings: Timings, renews: 'all' | 'attached'): void {
    for (const one of renews === 'all' ? this.#leases : this.#leases.slice(0, 1)) {
      one.lease = renewLease(one.lease, sent_ms, timings);
    }
    this.check();
  }

  /** Fences if it is time; else sees to it that it is noticed when it is. */
  check(): void {
    for (const one of this.#leases) {
      one.timer?.cancel();
      one.timer = null;
      const left_ms = fenceIn(one.lease, this.#lease_clock());
      if (left_ms === Number.POSITIVE_INFINITY) continue;
      if (left_ms > 0) {
        one.timer = this.#clock.after(left_ms, () => this.check());
        continue;
      }
      one.lease = NO_LEASE;
      one.fence();
    }
  }

  /** Whether detached work may be begun, by the lease clock. */
  allowsDetached(): boolean {
    this.check();
    return this.#leases[1]!.lease.sent_ms !== null;
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
    for (const one of this.#leases) {
      one.timer?.cancel();
      one.timer = null;
      one.lease = NO_LEASE;
    }
  }
}
