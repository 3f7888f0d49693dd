/**
 * When a node whose link is gone dials again. It knows one address or several; a round is one dial to each, the next at
 * once when one lets nobody in, until one does. Between rounds it waits: first within a random second, so that a fleet
 * does not come back in step; then with full jitter under a ceiling that rises to 5 s. The first round after a link that
 * stood for some seconds is one of the first kind, for its streams wait 5 s and no longer; the ceilings after it stay as
 * high as they were until a link has stood for a minute. So a control plane that lets nodes in and drops them is not
 * hammered: a link, however short, ends the round. `slow` is the pace of a node that was told no, but may yet be let in.
 */
export interface Reconnect {
  /** Rounds begun since the last link that stood for a minute. */
  readonly attempts: number;
  /** The next round is the first one after a link. */
  readonly first: boolean;
  /** Addresses of this round that were dialled in vain, before the one that is dialled now. */
  readonly passed: number;
}

export const RECONNECT_CEILINGS_MS = [1000, 1000, 2000, 4000, 5000] as const;
/** A link that stood this long was a good one. */
export const RECONNECT_RESET_AFTER_MS = 60_000;
/** One that stood this long was a link. */
export const RECONNECT_FIRST_AFTER_MS = 3000;

export const RECONNECT_START: Reconnect = { attempts: 0, first: true, passed: 0 };

/** An address that says nothing holds its round for so long in the first one; twice as long in each that follows. */
const FIRST_PATIENCE_MS = 1000;

/** The round is over, or a link was. @param chance uniform in [0, 1) */
export function nextReconnect(
  state: Reconnect,
  chance: number,
  pace: 'normal' | 'slow' = 'normal',
): { state: Reconnect; delay_ms: number } {
  const last = RECONNECT_CEILINGS_MS.length - 1;
  const next = { attempts: state.attempts + 1, first: false, passed: 0 };
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

/** The address let nobody in. @returns the round with the next one, which is dialled at once; undefined: it was the last */
export function passAddress(state: Reconnect, addresses: number): Reconnect | undefined {
  const passed = state.passed + 1;
  return passed < addresses ? { ...state, passed } : undefined;
}

/**
 * How long the address that is dialled now may take to answer, in ms. While others wait it is less than the whole: one
 * that has gone without a word must not cost the round what all the others together would. A slow line gets its time in
 * later rounds, and at each round's last address.
 */
export function dialPatience({ attempts, passed }: Reconnect, addresses: number, whole_ms: number): number {
  if (passed + 1 >= addresses) return whole_ms;
  return Math.min(whole_ms, FIRST_PATIENCE_MS * 2 ** Math.min(attempts, 16));
}
