import { BUDGET_PERIODS } from '@flotilla/protocol';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  dropReservation,
  newBudgetWindow,
  newBudgetWindows,
  periodEnd,
  periodStart,
  reserveBudget,
  rollWindows,
  spend,
} from './budget.ts';

// Milliseconds since the epoch, by another calendar than the one under test.
const SUNDAY = 1_772_360_430_000; // 2026-03-01T10:20:30Z
const MIDNIGHT = 1_772_323_200_000;
const FEBRUARY = 1_769_904_000_000; // 2026-02-01, a Sunday
const YEAR_2200 = 7_258_118_400_000;
const DAY_MS = 86_400_000;

describe('a budget', () => {
  it('is overrun by one request at most, whatever runs at once, as long as none costs more than was reserved', () => {
    const request = fc.record({
      reserved: fc.integer({ min: 1, max: 500 }),
      part: fc.double({ min: 0, max: 1, noNaN: true }),
    });
    const step = fc.oneof(fc.record({ begin: request }), fc.record({ end: fc.nat() }));
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 1000 }), fc.array(step, { maxLength: 200 }), (budget, steps) => {
        const window = newBudgetWindow(0);
        const open: { reserved: number; cost: number }[] = [];
        let largest = 0;
        for (const action of steps) {
          if ('begin' in action) {
            const { reserved, part } = action.begin;
            const before = { ...window };
            const verdict = reserveBudget(window, budget, reserved);
            if (verdict === 'reserved') open.push({ reserved, cost: Math.floor(reserved * part) });
            else expect(window).toEqual(before);
            // Who finds nobody else under way and something left is never sent away.
            if (before.open === 0 && before.spent < budget) expect(verdict).toBe('reserved');
          } else if (open.length > 0) {
            const [ended] = open.splice(action.end % open.length, 1);
            dropReservation(window, ended!.reserved);
            window.spent += ended!.cost;
            largest = Math.max(largest, ended!.cost);
          }
          expect(window.spent).toBeLessThanOrEqual(budget + largest);
          expect(window.open).toBe(open.length);
          expect(window.reserved).toBe(open.reduce((sum, { reserved }) => sum + reserved, 0));
        }
      }),
    );
  });

  it('says what is used up apart from what is only held', () => {
    const window = newBudgetWindow(0);
    expect(reserveBudget(window, 10, 10)).toBe('reserved');
    expect(reserveBudget(window, 10, 1)).toBe('held');
    dropReservation(window, 10);
    window.spent += 10;
    expect(reserveBudget(window, 10, 1)).toBe('exhausted');
  });
});

describe('periods', () => {
  it('are those of the calendar in UTC, and weeks begin on Monday', () => {
    expect(periodStart('day', SUNDAY)).toBe(MIDNIGHT);
    expect(periodStart('week', SUNDAY)).toBe(MIDNIGHT - 6 * DAY_MS);
    expect(periodStart('month', SUNDAY)).toBe(MIDNIGHT);
    expect(periodStart('month', MIDNIGHT - 1)).toBe(FEBRUARY);
    expect(periodStart('total', SUNDAY)).toBe(0);
    expect(periodEnd('total', 0)).toBeNull();
    expect(periodEnd('month', 1_796_083_200_000)).toBe(1_798_761_600_000); // December 2026 ends with the year
  });

  it('follow each other without a gap, and each holds its times', () => {
    const times = fc.integer({ min: 0, max: YEAR_2200 });
    fc.assert(
      fc.property(times, fc.constantFrom('day', 'week', 'month'), (time, period) => {
        const start = periodStart(period, time);
        const end = periodEnd(period, start)!;
        expect(start <= time && time < end).toBe(true);
        expect(periodStart(period, end)).toBe(end);
        expect(periodStart(period, end - 1)).toBe(start);
      }),
    );
  });
});

describe('windows', () => {
  it('begin anew with their period, and only then', () => {
    const windows = newBudgetWindows(FEBRUARY - 3_600_000, { day: 1, week: 2, month: 3, total: 4 });
    rollWindows(windows, FEBRUARY - 1);
    expect(BUDGET_PERIODS.map((period) => windows[period].spent)).toEqual([1, 2, 3, 4]);
    rollWindows(windows, FEBRUARY);
    expect(BUDGET_PERIODS.map((period) => windows[period].spent)).toEqual([0, 2, 0, 4]);
  });

  it('keep what was spent when the clock is set back', () => {
    const windows = newBudgetWindows(FEBRUARY + 1000, { day: 7 });
    rollWindows(windows, FEBRUARY - 1000);
    expect(windows.day.spent).toBe(7);
  });

  it('count a request in the period it was made in, which may be over', () => {
    const windows = newBudgetWindows(FEBRUARY + 1000);
    spend(windows, 5, FEBRUARY - 1000);
    expect(BUDGET_PERIODS.map((period) => windows[period].spent)).toEqual([0, 5, 0, 5]);
    spend(windows, 5, FEBRUARY);
    expect(BUDGET_PERIODS.map((period) => windows[period].spent)).toEqual([5, 10, 5, 10]);
  });
});
