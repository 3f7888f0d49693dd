import type { AllowanceKind, Draw, Drawn } from './ports/shared-limits.ts';

/**
 * What this replica holds of one limit of one key, between two draws.
 *
 *     drawn ──▶ free ──take──▶ busy (a place at once, a budget's reservation) ──end──▶ free, or spent
 *                 └───take──▶ spent (of a minute's rate, at once) ──next draw──▶ told
 *
 * It keeps about as much ahead as was taken lately, and gives the rest back: at each tick what was not wanted for two of
 * them, and all that is free when another replica lacks it.
 */
export interface HeldShare {
  readonly key: string;
  readonly kind: AllowanceKind;
  /** Of a budget: the period in which all of this was drawn. What was taken in one that is over ends without a trace. */
  start: number;
  /** The key's limit by this replica's own snapshot. */
  limit: number;
  /** Less than 0: more was used than was held. */
  free: number;
  busy: number;
  /** Of a budget: so much of it goes beyond the budget, for the one request that may. */
  lent: number;
  /** And not told. */
  spent: number;
  doubt: boolean;
  /** What the store knows of it. */
  told: { held: number; busy: number };
  /** Taken since the last tick, and in the one before; of concurrency, the most that was busy. */
  wanted: number;
  wanted_before: number;
  /** The last draw brought less than was asked for: no use in asking before the next tick. */
  scarce: boolean;
  /** The newest recall that was heard of, and the one that was answered. */
  recall: number;
  answers: number;
  /** Ticks for which others have lacked it lately: nothing is kept ahead, and what is free is given back at once. */
  contended: number;
  /** The recall that somebody here waits for; 0: nobody does. */
  recalled: number;
  denied: Denial | null;
  seen: { drawn: Drawn; at_ms: number } | null;
}

/** What the store has refused is not asked for again at once. */
export interface Denial {
  verdict: 'short' | 'exhausted';
  /** So much was lacking. */
  first: number;
  until_ms: number;
  /** When a rate may have it. */
  there_ms: number;
}

/** What requests that wait lack: the first of them, and all together. */
export interface Lack {
  first: number;
  need: number;
}

const DENIED_MOST_MS = 1000;
const DENIED_LEAST_MS = 100;
const MUCH_PART = 20;
const CONTENDED_TICKS = 2;
/** Ticks' worth of what was taken lately that is kept ahead. */
const AHEAD_TICKS = 2;

export function newHeldShare(key: string, kind: AllowanceKind, limit: number, start = 0): HeldShare {
  const nothing = { free: 0, busy: 0, lent: 0, spent: 0, wanted: 0, wanted_before: 0 };
  return {
    key,
    kind,
    start,
    limit,
    ...nothing,
    doubt: false,
    told: { held: 0, busy: 0 },
    scarce: false,
    recall: 0,
    answers: 0,
    contended: 0,
    recalled: 0,
    denied: null,
    seen: null,
  };
}

/** What is free must be enough. */
export function takeShare(share: HeldShare, amount: number): void {
  share.free -= amount;
  if (isRate(share)) share.spent += amount;
  else share.busy += amount;
  if (share.kind === 'concurrency') share.wanted = Math.max(share.wanted, share.busy);
  else share.wanted += amount;
}

/**
 * What was taken has ended and so much of it was used; the rest is free again. What is used of a budget stays busy until
 * its usage row is there, and ends then: told before, a counting of the rows would lose it.
 */
export function trimShare(share: HeldShare, taken: number, used: number): void {
  share.busy -= taken - used;
  freeShare(share, taken - used);
}

/** Of what was taken so much was used; the rest is free again, of a minute's rate for all replicas. */
export function endShare(share: HeldShare, taken: number, used: number): void {
  if (isRate(share)) {
    share.spent += used - taken;
    return;
  }
  share.busy -= taken;
  share.spent += used;
  freeShare(share, taken - used);
}

function freeShare(share: HeldShare, amount: number): void {
  share.free += amount;
  const back = Math.min(Math.max(0, share.free), share.lent);
  share.free -= back;
  share.lent -= back;
}

/** What is free was drawn under another limit, or in a period that is over. */
export function voidShare(share: HeldShare): void {
  share.free = Math.min(0, share.free);
  share.denied = null;
}

/** So much was given back of a rate that others should not wait for it until the next tick. */
export function givesBackMuch({ spent, limit, contended }: HeldShare): boolean {
  return contended > 0 || -spent * MUCH_PART > limit;
}

/** What is to be at hand beside what is busy. */
export function wantedAhead(share: HeldShare): number {
  if (share.contended > 0) return 0;
  const lately = Math.max(share.wanted, share.wanted_before);
  return share.kind === 'concurrency' ? lately - share.busy : AHEAD_TICKS * lately;
}

/** It runs low: to be drawn before somebody has to wait. */
export function runsLow(share: HeldShare): boolean {
  return !share.scarce && share.free * 2 < wantedAhead(share);
}

/** Time goes on. @returns whether the store has to be asked or told */
export function tickShare(share: HeldShare): boolean {
  share.wanted_before = share.wanted;
  share.wanted = share.kind === 'concurrency' ? share.busy : 0;
  share.scarce = false;
  share.contended = Math.max(0, share.contended - 1);
  // What is free can be wanted by others, which a lost hint would hide.
  return isUntold(share) || share.free > 0 || runsLow(share);
}

/** Nothing of it is here, and the store knows that. */
export function isAtRest(share: HeldShare): boolean {
  const wanted = share.wanted + share.wanted_before + share.recalled;
  return !isUntold(share) && share.free <= 0 && share.busy === 0 && wanted === 0;
}

function isUntold(share: HeldShare): boolean {
  return (
    share.spent !== 0 || share.doubt || held(share) !== share.told.held || share.busy !== share.told.busy
  );
}

/** Gives back what is not wanted and asks for what is. What it gives back is spent by nobody here from now on. */
export function askDraw(share: HeldShare, lackOf: (free: number) => Lack): Draw {
  share.free = Math.max(0, share.free);
  const is_recalled = share.recall > share.answers;
  if (is_recalled) {
    share.contended = CONTENDED_TICKS;
    share.free = 0;
  }
  const { first, need } = lackOf(share.free);
  const ahead = wantedAhead(share);
  if (need === 0) share.free = Math.min(share.free, ahead);
  // While nobody knows what the store has heard, nothing is given back of a rate.
  const spent = isRate(share) && share.told.held < 0 ? Math.max(0, share.spent) : share.spent;
  const draw: Draw = {
    key: share.key,
    kind: share.kind,
    held: held(share),
    busy: share.busy,
    spent,
    size: share.seen?.drawn.size ?? null,
    start: share.start,
    first,
    need,
    ahead: need > 0 ? ahead : Math.max(0, ahead - share.free),
    recalled: first > 0 ? share.recalled : 0,
    answers: Math.max(share.answers, share.recall),
    doubt: share.doubt,
  };
  share.spent -= spent;
  share.doubt = false;
  return draw;
}

/**
 * Nobody knows whether the store has heard it. What was used is told again: it may count twice, never not at all. What was
 * given back of a rate is not, for it would be admitted twice; it comes back with time.
 */
export function undrawn(share: HeldShare, draw: Draw): void {
  share.spent += Math.max(0, draw.spent);
  share.doubt ||= draw.doubt || (share.kind === 'budget' && draw.spent !== 0);
  // As nothing that it can have said.
  share.told = { held: -1, busy: -1 };
}

/** In a new period of a budget nothing of the one before is left. */
export function takeDrawn(share: HeldShare, draw: Draw, drawn: Drawn, now_ms: number): void {
  const is_same_period = drawn.start === share.start;
  if (!is_same_period) {
    const { key, kind, limit, wanted } = share;
    Object.assign(share, newHeldShare(key, kind, limit, drawn.start), { wanted });
  }
  share.free += drawn.granted;
  share.lent = Math.min(share.lent, draw.held) + drawn.lent;
  share.told = {
    held: is_same_period ? draw.held + drawn.granted : drawn.granted,
    busy: is_same_period ? draw.busy : 0,
  };
  share.seen = { drawn, at_ms: now_ms };
  share.answers = Math.max(share.answers, draw.answers);
  share.scarce = drawn.granted < draw.need + draw.ahead;
  share.recalled = drawn.verdict === 'recalled' ? draw.recalled || drawn.recall : 0;
  share.denied = denialOf(draw, drawn, now_ms);
  if (share.told.held > 0) share.recall = Math.max(share.recall, drawn.recall);
  else share.recall = share.answers = Math.max(share.answers, drawn.recall);
}

function denialOf({ first }: Draw, { verdict, wait_ms }: Drawn, now_ms: number): Denial | null {
  if (verdict !== 'short' && verdict !== 'exhausted') return null;
  const pause_ms = verdict === 'exhausted' ? DENIED_MOST_MS : Math.min(wait_ms, DENIED_MOST_MS);
  return {
    verdict,
    first,
    until_ms: now_ms + Math.max(pause_ms, DENIED_LEAST_MS),
    there_ms: now_ms + wait_ms,
  };
}

/** Whether the store has just said that so much more is not there. */
export function deniedFor(share: HeldShare, lack: number, now_ms: number): Denial | null {
  const { denied } = share;
  if (denied === null || now_ms >= denied.until_ms) return null;
  return denied.verdict === 'exhausted' || lack >= denied.first ? denied : null;
}

function held(share: HeldShare): number {
  return Math.max(0, share.free) + (isRate(share) ? 0 : share.busy);
}

function isRate({ kind }: HeldShare): boolean {
  return kind === 'requests' || kind === 'tokens';
}
