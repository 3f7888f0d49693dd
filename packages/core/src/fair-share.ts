/**
 * Fair share between keys. Each job's order key is its key's virtual time, which a submission pushes ahead by what one
 * job is worth and which never lags behind real time; a priority is worth a minute. So a key that submits a thousand
 * jobs at once spreads over the seconds to come, and another key's next job goes in front of most of them; a job that
 * waits needs no ageing, because everything that comes later has a larger key by then.
 */
export const PRIORITY_STEP_MS = 60_000;
/** What one job moves its key's virtual time. */
export const FAIR_SHARE_STEP_MS = 1000;
/** Keys whose virtual time is real time are forgotten when there are more than this. */
const KEYS_MOST = 10_000;

export interface FairShare {
  readonly virtual_ms: Map<string, number>;
}

export function newFairShare(): FairShare {
  return { virtual_ms: new Map() };
}

/**
 * @param now_ms wall clock, so that keys of several replicas can be compared roughly; no safety rests on it
 * @param priority larger goes first
 * @returns a safe integer
 */
export function orderKey(share: FairShare, key: string, priority: number, now_ms: number): number {
  const now = Math.round(now_ms);
  const virtual = Math.max(now, share.virtual_ms.get(key) ?? 0);
  if (share.virtual_ms.size >= KEYS_MOST) forgetIdle(share, now);
  share.virtual_ms.set(key, virtual + FAIR_SHARE_STEP_MS);
  return virtual - Math.round(priority * PRIORITY_STEP_MS);
}

/** A job that did not have to wait costs its key nothing. */
export function refund(share: FairShare, key: string): void {
  const virtual = share.virtual_ms.get(key);
  if (virtual !== undefined) share.virtual_ms.set(key, virtual - FAIR_SHARE_STEP_MS);
}

function forgetIdle(share: FairShare, now: number): void {
  for (const [key, virtual] of share.virtual_ms) if (virtual <= now) share.virtual_ms.delete(key);
}
