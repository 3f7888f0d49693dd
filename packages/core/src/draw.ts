import { periodStart } from './budget.ts';
import type { Allowance, AllowanceKind, Draw, Drawn, DrawVerdict, KeyLimits } from './ports/shared-limits.ts';

/**
 * Limits of keys that replicas share: each draws from the allowance ahead of its need, admits from what it holds, and
 * tells what it has used.
 *
 *     can be drawn ──draw──▶ held by a replica ──told as spent──▶ used ──time, next period──▶ can be drawn
 *           ▲                     │
 *           └──told as held less──┘
 *
 * `size ≥ used + pledged + held` holds after each draw, so however many draw, no more is admitted than with one
 * replica: a minute's worth at once and then by time, the concurrency, the budget. What a replica says that it holds is
 * what it had then: it can be less by now, never more.
 */

/** Of fractions that time makes of a rate. */
const ROUNDING = 1e-6;

export function newAllowance(key: string, kind: Allowance['kind']): Allowance {
  const nothing = { used: 0, pledged: 0, at: 0, start: 0, counted_at: 0, recall: 0 };
  return { key, kind, size: null, ...nothing, stale: true, doubt: false, shares: {} };
}

/**
 * One replica's draw.
 * @param key with its limits now; undefined: there is no such key
 * @param count what a budget's rows say, where `countFrom` asks for that
 * @param now by the store's clock
 */
export function drawShare(
  before: Allowance,
  replica: string,
  draw: Draw,
  key: KeyLimits | undefined,
  now: number,
  count: BudgetCount | null = null,
): { allowance: Allowance; drawn: Drawn } {
  const size = limitOf(key, before.kind);
  const allowance = count === null ? resize(before, size, now) : recounted({ ...before, size }, count, now);
  // What was of a period that is over is nobody's any more.
  const told = draw.start === allowance.start ? draw : { ...draw, held: 0, busy: 0, spent: 0 };
  // What it tells is committed, and so it was among the rows.
  const used = usedAfter(allowance, count === null ? told : { ...told, spent: 0 });
  const { [replica]: own, ...others } = allowance.shares;
  const others_held = sumOf(others, 'held');
  const others_busy = sumOf(others, 'busy');
  const left = (size ?? 0) - used - allowance.pledged - others_held - told.held;
  const granted = size === null ? 0 : grant(allowance, told, used, left, others_held);
  const answered = Math.max(own?.answered ?? 0, draw.answers);
  const held = told.held + granted;
  const shares = held === 0 ? others : { ...others, [replica]: { held, busy: told.busy, answered } };
  let { recall } = allowance;
  let verdict: DrawVerdict = 'granted';
  if (size !== null && granted < draw.first) {
    const asked = { ...allowance, used };
    verdict = refusal(asked, told, size, left, others);
    if (verdict === 'recalled' && draw.recalled === 0) recall += 1;
  }
  const { kind, pledged, start } = allowance;
  const is_rate = kind === 'requests' || kind === 'tokens';
  // What is owed has to come back first.
  const lacks = draw.first - left;
  const wait_ms =
    is_rate && size !== null && verdict === 'short' ? Math.max(1, Math.ceil((lacks * 60_000) / size)) : 0;
  const lent = Math.max(0, granted - Math.max(0, Math.floor(left + ROUNDING)));
  const view = { size, used, pledged, start, others_held, others_busy, recall };
  return {
    allowance: {
      ...allowance,
      used,
      shares,
      recall,
      doubt: allowance.doubt || (count === null && draw.doubt),
    },
    drawn: { key: before.key, kind, granted, lent, verdict, wait_ms, ...view },
  };
}

/** What a replica held that is no more: what it has used of that nobody knows, of a budget the rows do. */
export function leaveShare(before: Allowance, replica: string, now: number): Allowance {
  const { [replica]: own, ...shares } = before.shares;
  if (own === undefined) return before;
  if (before.kind === 'budget') return { ...before, stale: true, shares };
  if (before.kind === 'concurrency') return { ...before, shares };
  const allowance = resize(before, before.size, now);
  return { ...allowance, used: allowance.used + own.held, shares };
}

/** Before somebody is refused for what the rows say they are read again, but no sooner than this. */
const COUNT_SPENT_MS = 30_000;
/** With many rows a counting takes a while, and detached jobs that one replica accepts and another ends always leave doubt. */
const COUNT_DOUBT_MS = 300_000;

/** What the rows of a budget say of its period: spent by usage rows, pledged by open detached jobs that no replica holds. */
export interface BudgetCount {
  start: number;
  spent: number;
  pledged: number;
}

/**
 * Whether a budget's rows have to be counted before this draw: in a new period, where they may say more than was told
 * (a replica died), and before somebody hears that it is spent, or is refused for jobs of the dead that may have ended
 * since, for they may also say less.
 * @returns the beginning of the period to count, or null
 */
export function countFrom(
  allowance: Allowance,
  draw: Draw,
  key: KeyLimits | undefined,
  now: number,
): number | null {
  const budget = key?.token_budget ?? null;
  if (allowance.kind !== 'budget' || budget === null) return null;
  const start = periodStart(budget.period, now);
  if (allowance.stale || start !== allowance.start) return start;
  // A clock that was set back must not put it off.
  const age_ms = Math.abs(now - allowance.counted_at);
  const is_doubted = allowance.doubt || draw.doubt;
  const used = allowance.used + draw.spent;
  const taken = used + allowance.pledged + sumOf(allowance.shares, 'held');
  const is_pledged = allowance.pledged > 0 && taken + draw.first > budget.tokens;
  const is_refused = draw.first > 0 && (used >= budget.tokens || is_pledged);
  return (is_doubted && age_ms >= COUNT_DOUBT_MS) || (is_refused && age_ms >= COUNT_SPENT_MS) ? start : null;
}

/**
 * What the others have not told yet is among the rows and will be told: until the next counting it counts twice, on the
 * safe side.
 */
function recounted(before: Allowance, { start, spent, pledged }: BudgetCount, now: number): Allowance {
  const shares = start === before.start ? before.shares : {};
  return { ...before, start, used: spent, pledged, shares, counted_at: now, stale: false, doubt: false };
}

/** Null: it has no such limit. */
export function limitOf(key: KeyLimits | undefined, kind: AllowanceKind): number | null {
  switch (kind) {
    case 'requests':
      return key?.requests_per_minute ?? null;
    case 'tokens':
      return key?.tokens_per_minute ?? null;
    case 'concurrency':
      return key?.concurrency ?? null;
    case 'budget':
      return key?.token_budget?.tokens ?? null;
  }
}

/** A limit that was changed counts at once, of a rate with a full minute's worth. Time brings back what was used of one. */
function resize(before: Allowance, size: number | null, now: number): Allowance {
  const { kind } = before;
  if (kind !== 'requests' && kind !== 'tokens') return { ...before, size };
  // A clock that was set back brings nothing.
  const passed_ms = Math.max(0, now - before.at);
  const back = before.size === null ? 0 : (passed_ms * before.size) / 60_000;
  const used = size === before.size ? Math.max(0, before.used - back) : 0;
  return { ...before, size, used, at: Math.max(before.at, now) };
}

function usedAfter({ kind, used, size }: Allowance, told: Draw): number {
  if (kind === 'concurrency') return 0;
  // Used under another limit: this one began whole.
  if (kind !== 'budget' && told.size !== size) return used;
  const after = Math.max(0, used + told.spent);
  // No replica has used more requests than there are: what goes beyond was told twice, since an answer was lost.
  return kind === 'requests' && size !== null ? Math.min(after, size) : after;
}

/**
 * Whoever waits gets what there is, and for what may come one replica gets half of it: the next one finds something.
 * One request that exceeds what is left of a budget is let through where nothing else is under way on any replica, else
 * the rest of a budget could never be used.
 */
function grant(
  { kind, size, pledged }: Allowance,
  { first, need, ahead, busy }: Draw,
  used: number,
  left: number,
  others_held: number,
): number {
  const whole = Math.max(0, Math.floor(left + ROUNDING));
  if (first > whole) {
    const alone = kind === 'budget' && used < size! && busy === 0 && others_held === 0 && pledged === 0;
    return alone ? first : 0;
  }
  return Math.min(whole, need + Math.min(ahead, Math.floor(whole / 2)));
}

function refusal(
  { kind, used, recall }: Allowance,
  draw: Draw,
  size: number,
  left: number,
  others: Allowance['shares'],
): Exclude<DrawVerdict, 'granted'> {
  if (kind === 'budget' && used >= size) return 'exhausted';
  const holders = Object.values(others).filter(({ held }) => held > 0);
  // Those who have more of a minute's tokens than they used say so with their answer; alone with a budget, one request
  // may have more than is left.
  const enough =
    left + sumOf(others, 'held') >= draw.first - ROUNDING ||
    kind === 'tokens' ||
    (kind === 'budget' && draw.busy === 0);
  if (holders.length === 0 || !enough) return 'short';
  if (draw.recalled === 0 || draw.recalled > recall) return 'recalled';
  return holders.every(({ answered }) => answered >= draw.recalled) ? 'short' : 'recalled';
}

function sumOf(shares: Allowance['shares'], part: 'held' | 'busy'): number {
  let sum = 0;
  for (const share of Object.values(shares)) sum += share[part];
  return sum;
}
