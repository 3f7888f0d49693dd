import type { Timings } from '@flotilla/core';

/**
 * The node's own view of its lease, by a clock that counts sleep. It runs from the moment the last acknowledged beat
 * was SENT; the registration counts as one.
 *
 *     none ──registered──▶ held ──fence due──▶ none
 *                           └──beat acknowledged──▶ held (longer)
 */
export interface Lease {
  /** When the last acknowledged beat was sent, by the lease clock; null: nothing is held. */
  readonly sent_ms: number | null;
  readonly fence_ms: number;
}

export const NO_LEASE: Lease = { sent_ms: null, fence_ms: 0 };

/** An acknowledgement of an older beat than the last acknowledged one changes nothing. */
export function renewLease(lease: Lease, sent_ms: number, t: Timings): Lease {
  const newest = lease.sent_ms === null ? sent_ms : Math.max(lease.sent_ms, sent_ms);
  return { sent_ms: newest, fence_ms: t.fence_ms };
}

/** How long until the node must fence itself; Infinity without a lease. */
export function fenceIn(lease: Lease, now_ms: number): number {
  return lease.sent_ms === null ? Number.POSITIVE_INFINITY : lease.sent_ms + lease.fence_ms - now_ms;
}
