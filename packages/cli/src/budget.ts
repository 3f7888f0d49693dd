import { InvalidArgumentError } from 'commander';
import type { Key } from '@flotilla/sdk';
import { whole } from './parse.ts';

/** A token budget, as the command line writes and prints it. */
export type Budget = NonNullable<Key['token_budget']>;

/** Lifts a limit. A word, because commander makes of null what it makes of nothing. */
export type None = 'none';

const PERIODS = ['day', 'week', 'month', 'total'] as const;
const UNITS: Record<string, number> = { '': 1, k: 1000, m: 1_000_000, b: 1_000_000_000 };

/** `1000000/month`, `500k/day`, `2M/total`; `none`: no budget. */
export function budget(value: string): Budget | None {
  if (value === 'none') return value;
  const [amount = '', unit, ...more] = value.split('/');
  const period = PERIODS.find((known) => known === unit);
  if (period === undefined || more.length > 0) {
    throw new InvalidArgumentError(
      `Write it like 1000000/month or 500k/day; there is ${PERIODS.join(', ')}.`,
    );
  }
  return { tokens: tokens(amount), period };
}

/** `20000` or `20k`; `none`: no limit. */
export function rate(value: string): number | None {
  return value === 'none' ? value : tokens(value);
}

function tokens(value: string): number {
  const [, digits = '', unit = ''] = /^(\d+)([kmb]?)$/i.exec(value) ?? [];
  const number = whole(digits) * UNITS[unit.toLowerCase()]!;
  if (number < 1) throw new InvalidArgumentError('1 is the least.');
  return number;
}

export function budgetText({ tokens: amount, period }: Budget): string {
  const number = amount.toLocaleString('en');
  return period === 'total' ? `${number} tokens in total` : `${number} tokens a ${period}`;
}
