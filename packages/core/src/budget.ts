import { monthOf, monthStart } from './calendar.ts';
import { BUDGET_PERIODS, type BudgetPeriod, type TokenBudget } from '@flotilla/protocol';

/**
 * A key's token budget in one calendar period, in UTC. What a request may cost is reserved before it begins and becomes
 * what it did cost when it ends; a reservation belongs to the window it was made in, the cost to the period in which the
 * request was made.
 *
 *     open ──reserve──▶ held ──settle──▶ spent
 *                        └────drop─────▶ (nothing)
 *
 * Only what fits is reserved beside others. A request that alone exceeds what is left is let through when nothing else
 * is under way, so that the rest of a budget is not out of reach: that one is all by which a budget can be overrun, as
 * long as no request costs more than was reserved for it.
 */
export interface BudgetWindow {
  /** When the period began; 0 for `total`. */
  readonly start: number;
  spent: number;
  reserved: number;
  /** Reservations that stand. */
  open: number;
}

export type BudgetVerdict =
  | 'reserved'
  /** The rest is held by requests under way: it may be free again soon. */
  | 'held'
  /** Used up until the period ends. */
  | 'exhausted';

export function newBudgetWindow(start: number, spent = 0): BudgetWindow {
  return { start, spent, reserved: 0, open: 0 };
}

export function reserveBudget(window: BudgetWindow, budget: number, tokens: number): BudgetVerdict {
  if (window.spent >= budget) return 'exhausted';
  if (window.open > 0 && window.spent + window.reserved + tokens > budget) return 'held';
  addReservation(window, tokens);
  return 'reserved';
}

/** Reserves without asking what is left: for work that was admitted before. */
export function addReservation(window: BudgetWindow, tokens: number): void {
  window.reserved += tokens;
  window.open += 1;
}

/** Ends a reservation of so many tokens; what the request did cost is added by `spend`. */
export function dropReservation(window: BudgetWindow, tokens: number): void {
  window.reserved -= tokens;
  window.open -= 1;
}

/** A request is worth what is left, 0 at the least: a settlement may have gone beyond the budget. */
export function budgetLeft(
  window: Pick<BudgetWindow, 'spent' | 'reserved'>,
  { tokens }: TokenBudget,
): number {
  return Math.max(0, tokens - window.spent - window.reserved);
}

/** The window of each kind of period, so that a budget given later finds what was spent before. */
export type BudgetWindows = Record<BudgetPeriod, BudgetWindow>;

export function newBudgetWindows(
  at: number,
  spent: Partial<Record<BudgetPeriod, number>> = {},
): BudgetWindows {
  const starts = periodStarts(at);
  return {
    day: newBudgetWindow(starts.day, spent.day),
    week: newBudgetWindow(starts.week, spent.week),
    month: newBudgetWindow(starts.month, spent.month),
    total: newBudgetWindow(starts.total, spent.total),
  };
}

/** Begins anew each window whose period is over. A clock that is set back begins none: that would forget what was spent. */
export function rollWindows(windows: BudgetWindows, now: number): void {
  for (const period of BUDGET_PERIODS) {
    const start = periodStart(period, now);
    if (start > windows[period].start) windows[period] = newBudgetWindow(start);
  }
}

/** Counts what a request that was made then has cost, in each period that it was made in and that still runs. */
export function spend(windows: BudgetWindows, tokens: number, created_at: number): void {
  for (const period of BUDGET_PERIODS) {
    const window = windows[period];
    if (periodStart(period, created_at) === window.start) window.spent += tokens;
  }
}

const DAY_MS = 86_400_000;
/** 1970-01-01 was a Thursday; weeks begin on Monday. */
const FIRST_MONDAY_MS = 4 * DAY_MS;

/** When the period that holds this time began: midnight UTC, of Monday for weeks, of the first for months. */
export function periodStart(period: BudgetPeriod, at: number): number {
  switch (period) {
    case 'day':
      return Math.floor(at / DAY_MS) * DAY_MS;
    case 'week':
      return Math.floor((at - FIRST_MONDAY_MS) / (7 * DAY_MS)) * 7 * DAY_MS + FIRST_MONDAY_MS;
    case 'month':
      return monthStart(monthOf(at));
    case 'total':
      return 0;
  }
}

/** The beginning of each period that holds this time. */
export function periodStarts(at: number): Record<BudgetPeriod, number> {
  return {
    day: periodStart('day', at),
    week: periodStart('week', at),
    month: periodStart('month', at),
    total: 0,
  };
}

/** When the next period begins; null: never, the budget is for good. */
export function periodEnd(period: BudgetPeriod, start: number): number | null {
  switch (period) {
    case 'day':
      return start + DAY_MS;
    case 'week':
      return start + 7 * DAY_MS;
    case 'month':
      return monthStart(monthOf(start) + 1);
    case 'total':
      return null;
  }
}
