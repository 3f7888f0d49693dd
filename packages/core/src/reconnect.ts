/**
 * When a node whose link is gone dials again: first within a random second, so that a fleet does not come back in
 * step; then with full jitter under a ceiling that rises to 5 s. The first dial after a link that stood for some seconds
 * is one of the first kind, for its streams wait 5 s and no longer; the ceilings after it stay as high as they were
 * until a link has stood for a minute. So a control plane that lets nodes in and drops them is not hammered. `slow` is
 * the pace of a node that was told no, but may yet be let in.
 */
export interface Reconnect {
  /** Attempts made since the last link that stood for a minute. */
  readonly attempts: number;
  /** The next attempt is the first one after a link. */
  readonly first: boolean;
}

export const RECONNECT_CEILINGS_MS = [1000, 1000, 2000, 4000, 5000] as const;
/** A link that stood this long was a good one. */
export const RECONNECT_RESET_AFTER_MS = 60_000;
/** One that stood this long was a link. */
export const RECONNECT_FIRST_AFTER_MS = 3000;

export const RECONNECT_START: Reconnect = { attempts: 0, first: true };

/** @param chance uniform in [0, 1) */
export function nextReconnect(
  state: Reconnect,
  chance: number,
  pace: 'normal' | 'slow' = 'normal',
): { state: Reconnect; delay_ms: number } {
  const last = RECONNECT_CEILINGS_MS.length - 1;
  const next = { attempts: state.attempts + 1, first: false };
  const slowest_ms = RECONNECT_CEILINGS_MS[last]!;
  if (pace === 'slow') return { state: next, delay_ms: slowest_ms * (0.5 + chance / 2) };
  const rung = state.first ? 0 : Math.min(state.attempts, last);
  return { state: next, delay_ms: RECONNECT_CEILINGS_MS[rung]! * chance };
}

/** A link was lost that had been registered for `stood_ms`. */
export function linkStood(state: Reconnect, stood_ms: number): Reconnect {
  if (stood_ms >= RECONNECT_RESET_AFTER_MS) return RECONNECT_START;
  return stood_ms >= RECONNECT_FIRST_AFTER_MS ? { ...state, first: true } : state;
}
