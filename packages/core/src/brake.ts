/**
 * The brake: when more than half of at least 5 nodes turn suspect together, the fault is more likely ours (our network,
 * our machine) than theirs, so giving their work away is held back until fewer are suspect, 60 s at most.
 * Nodes that had a link before the control plane started, and have none when they have been waited for, turned suspect
 * together as well.
 * Released ─▶ held (alarm) ─▶ released. Moved by the roster's counts on each liveness change.
 */
export const BRAKE_MIN_NODES = 5;
export const BRAKE_MAX_MS = 60_000;

export interface Brake {
  readonly held_since_ms: number | null;
  /** It was held for its full time: not again before the fleet has recovered. */
  readonly spent: boolean;
}
export const RELEASED: Brake = { held_since_ms: null, spent: false };

/**
 * @param known nodes that were online when this began: online and suspect ones
 */
export function stepBrake(brake: Brake, suspect: number, known: number, now_ms: number): Brake {
  const many = known >= BRAKE_MIN_NODES && suspect * 2 > known;
  if (!many) return brake.held_since_ms === null && !brake.spent ? brake : RELEASED;
  if (brake.spent) return brake;
  if (brake.held_since_ms === null) return { held_since_ms: now_ms, spent: false };
  return now_ms - brake.held_since_ms >= BRAKE_MAX_MS ? { held_since_ms: null, spent: true } : brake;
}
