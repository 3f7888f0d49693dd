/**
 * Fair share of slot time between keys. Each job's order key is its key's virtual time, which a submission pushes ahead
 * by a step: longer for a key whose jobs hold their slots for longer than those of others, so that it gets as much of
 * the slots as one with short jobs, not as many turns. A priority is worth a minute.
 *
 * A key that was idle begins where the line stands: at real time, or at the head of a line that lags behind it. Without
 * the latter, who floods a fleet that cannot keep up is ahead for as long as its backlog lasts: its jobs were ordered
 * at times that are long past when the others come. A job that waits needs no ageing, since everything that comes later
 * has a larger key by then.
 */
export const PRIORITY_STEP_MS = 60_000;
/** What a job of usual length moves its key's virtual time. */
export const FAIR_SHARE_STEP_MS = 1000;
/** How much longer or shorter than usual a key's jobs may count. */
const RATIO_MOST = 100;
/** How much of what was known is kept when a job ends. */
const KEY_MEMORY = 0.8;
const ALL_MEMORY = 0.95;
/** Keys whose virtual time is real time are forgotten when there are more than this. */
const KEYS_MOST = 10_000;

interface KeyShare {
  virtual_ms: number;
  /** How long its jobs have lately held a slot; null: none has ended. */
  slot_ms: number | null;
}

export interface FairShare {
  readonly keys: Map<string, KeyShare>;
  /** The same of all keys' jobs. */
  slot_ms: number | null;
}

export function newFairShare(): FairShare {
  return { keys: new Map(), slot_ms: null };
}

/**
 * @param now_ms wall clock, so that keys of several replicas can be compared roughly; no safety rests on it
 * @param priority larger goes first
 * @param head_ms the order key of who goes first in the line, without its priority; undefined: nobody waits
 * @returns a safe integer
 */
export function orderKey(
  share: FairShare,
  key: string,
  priority: number,
  now_ms: number,
  head_ms?: number,
): number {
  const now = Math.round(now_ms);
  const line = Math.min(now, head_ms ?? now);
  const known = share.keys.get(key);
  const virtual = Math.max(line, known?.virtual_ms ?? line);
  if (share.keys.size >= KEYS_MOST) forgetIdle(share, now);
  const slot_ms = known?.slot_ms ?? null;
  share.keys.set(key, { virtual_ms: virtual + stepOf(share, slot_ms), slot_ms });
  return virtual - Math.round(priority * PRIORITY_STEP_MS);
}

/** A job that did not have to wait, or was not taken on, costs its key nothing. Said soon: it gives back the step of now. */
export function refund(share: FairShare, key: string): void {
  const known = share.keys.get(key);
  if (known !== undefined) known.virtual_ms -= stepOf(share, known.slot_ms);
}

/** A job of the key stands in the line of another replica, at this order key without its priority. */
export function stoodElsewhere(share: FairShare, key: string, at_ms: number): void {
  const known = share.keys.get(key) ?? { virtual_ms: at_ms, slot_ms: null };
  known.virtual_ms = Math.max(known.virtual_ms, at_ms + stepOf(share, known.slot_ms));
  share.keys.set(key, known);
}

/** One of its jobs has held a slot for so long. */
export function heldSlot(share: FairShare, key: string, held_ms: number): void {
  const known = share.keys.get(key);
  if (known === undefined) return;
  known.slot_ms = blend(known.slot_ms, held_ms, KEY_MEMORY);
  share.slot_ms = blend(share.slot_ms, held_ms, ALL_MEMORY);
}

function stepOf(share: FairShare, slot_ms: number | null): number {
  if (slot_ms === null || share.slot_ms === null) return FAIR_SHARE_STEP_MS;
  const ratio = Math.max(1, slot_ms) / Math.max(1, share.slot_ms);
  return Math.round(FAIR_SHARE_STEP_MS * Math.min(RATIO_MOST, Math.max(1 / RATIO_MOST, ratio)));
}

function blend(before: number | null, value: number, memory: number): number {
  return before === null ? value : memory * before + (1 - memory) * value;
}

function forgetIdle(share: FairShare, now: number): void {
  for (const [key, { virtual_ms }] of share.keys) if (virtual_ms <= now) share.keys.delete(key);
}
