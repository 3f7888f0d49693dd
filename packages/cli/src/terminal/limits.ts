import type { Limits } from '@flotilla/sdk';
import { budgetText } from '../budget.ts';
import { formatDuration } from './moment.ts';
import { facts } from './table.ts';

/** What is left of a key's limits, one a line. */
export function limitFacts({ key, requests, tokens, concurrency, budget }: Limits): string {
  return facts([
    ['key', key],
    ['requests', rateText(requests)],
    ['tokens', rateText(tokens)],
    ['at once', concurrency === null ? NONE : `${concurrency.in_use} of ${concurrency.limit} under way`],
    ['budget', budget === null ? NONE : budgetText(budget)],
    ...(budget === null ? [] : budgetFacts(budget)),
  ]);
}

const NONE = 'no limit';

function rateText(rate: Limits['requests']): string {
  if (rate === null) return NONE;
  const whole = rate.reset_ms === 0 ? '' : `, all of them in ${formatDuration(rate.reset_ms)}`;
  return `${rate.remaining.toLocaleString('en')} of ${rate.limit.toLocaleString('en')} a minute left${whole}`;
}

function budgetFacts({
  used,
  reserved,
  remaining,
  renews_at,
}: NonNullable<Limits['budget']>): [string, string][] {
  return [
    ['used', used.toLocaleString('en')],
    ['reserved', `${reserved.toLocaleString('en')} for requests under way`],
    ['left', remaining.toLocaleString('en')],
    ['renews', renews_at ?? 'never'],
  ];
}
