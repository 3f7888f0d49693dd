import { type BudgetWindow, budgetLeft, periodEnd } from '@flotilla/core';
import { FlotillaError, type LimitsView, type TokenBudget } from '@flotilla/protocol';

/** What clients hear of limits, with one replica and with several. */

/** How soon another request may be done: nobody can know, so that a client does not ask in a tight loop. */
const OTHERS_RETRY_MS = 1000;
export const STORE_RETRY_MS = 2000;

type Headers = Record<string, string>;

export function tooManyAtOnce(concurrency: number, headers: Headers): FlotillaError {
  return new FlotillaError(
    'rate_limited',
    concurrency === 1
      ? 'This key may have one request under way, and has it.'
      : `This key may have ${concurrency} requests under way, and has them.`,
    { retry_after_ms: OTHERS_RETRY_MS, headers },
  );
}

/** @param amount of tokens: so many may be taken */
export function tooFast(
  what: 'requests' | 'tokens',
  per_minute: number,
  amount: number,
  retry_after_ms: number,
  headers: Headers,
): FlotillaError {
  const message =
    what === 'requests'
      ? `This key may send ${per_minute} requests a minute, and has.`
      : `This key may use ${per_minute} tokens a minute; this request may take ${amount}, which are not there yet.`;
  return new FlotillaError('rate_limited', message, { retry_after_ms, headers });
}

export function budgetHeld(estimate: number, headers: Headers): FlotillaError {
  return new FlotillaError(
    'rate_limited',
    `This request may cost ${estimate} tokens, and what is left of this key's budget is held by its requests ` +
      'under way. A smaller `max_tokens` reserves less.',
    { retry_after_ms: OTHERS_RETRY_MS, headers },
  );
}

/** What replicas share is drawn from the store. */
export function storeAway(): FlotillaError {
  return new FlotillaError(
    'unavailable',
    "The store does not answer, and this key's limits are drawn from it.",
    {
      retry_after_ms: STORE_RETRY_MS,
    },
  );
}

/** @param start of the period, 0 for `total` */
export function budgetSpent(
  budget: TokenBudget,
  start: number,
  used: number,
  headers: Headers,
): FlotillaError {
  const { tokens, period } = budget;
  const renews_at = renewal(budget, start);
  const until =
    renews_at === null
      ? 'It does not renew: an administrator can raise it (flotilla keys update --token-budget).'
      : `It renews at ${renews_at}; an administrator can raise it before that.`;
  const what = period === 'total' ? `${tokens} tokens` : `${tokens} tokens a ${period}`;
  return new FlotillaError(
    'insufficient_credit',
    `This key's budget of ${what} is used up (${used} used). ${until}`,
    { headers, more: { budget: { tokens, period, used, renews_at } } },
  );
}

export function budgetView(
  budget: TokenBudget,
  window: Pick<BudgetWindow, 'start' | 'spent' | 'reserved'>,
): LimitsView['budget'] {
  return {
    ...budget,
    used: window.spent,
    reserved: window.reserved,
    remaining: budgetLeft(window, budget),
    period_started_at: budget.period === 'total' ? null : isoTime(window.start),
    renews_at: renewal(budget, window.start),
  };
}

function renewal({ period }: TokenBudget, start: number): string | null {
  const end = periodEnd(period, start);
  return end === null ? null : isoTime(end);
}

function isoTime(at: number): string {
  return new Date(at).toISOString();
}
