import { type AllowanceKind, type Denial, type HeldShare, type KeyRecord, limitOf } from '@flotilla/core';
import type { FlotillaError, LimitsView } from '@flotilla/protocol';
import { budgetHeld, budgetSpent, budgetView, tooFast, tooManyAtOnce } from './limit-answers.ts';
import { leftOf, rateHeaders, type RateLeft } from './rate-headers.ts';

/** What clients see of limits that replicas share: as the store had them at the last draw, with what was done here since. */
export interface SharedAccount {
  key: KeyRecord;
  readonly shares: ReadonlyMap<AllowanceKind, HeldShare>;
}

export function shownHeaders({ key, shares }: SharedAccount, now_ms: number): Record<string, string> {
  const headers: Record<string, string> = {};
  for (const kind of ['requests', 'tokens'] as const) {
    const limit = limitOf(key, kind);
    if (limit !== null) Object.assign(headers, rateHeaders(kind, rateOf(shares.get(kind), limit, now_ms)));
  }
  return headers;
}

export function shownShares({ key, shares }: SharedAccount, now_ms: number): LimitsView {
  const rate = (kind: 'requests' | 'tokens') => {
    const limit = limitOf(key, kind);
    return limit === null ? null : rateOf(shares.get(kind), limit, now_ms);
  };
  const { concurrency, token_budget } = key;
  const places = shares.get('concurrency');
  const budget = shares.get('budget');
  return {
    key: key.id,
    requests: rate('requests'),
    tokens: rate('tokens'),
    concurrency:
      concurrency === null
        ? null
        : { limit: concurrency, in_use: (places?.busy ?? 0) + (places?.seen?.drawn.others_busy ?? 0) },
    budget:
      token_budget === null || budget === undefined || budget.seen === null
        ? null
        : budgetView(token_budget, {
            start: budget.start,
            spent: budget.seen.drawn.used + budget.spent,
            reserved: budget.busy + budget.seen.drawn.others_busy + budget.seen.drawn.pledged,
          }),
  };
}

/** @param amount so much was wanted */
export function shareRefused(
  account: SharedAccount,
  share: HeldShare,
  amount: number,
  { verdict, there_ms }: Denial,
  now_ms: number,
): FlotillaError {
  const headers = shownHeaders(account, now_ms);
  switch (share.kind) {
    case 'concurrency':
      return tooManyAtOnce(share.limit, headers);
    case 'requests':
    case 'tokens':
      return tooFast(share.kind, share.limit, amount, Math.max(1, Math.ceil(there_ms - now_ms)), headers);
    case 'budget':
      return verdict === 'exhausted'
        ? budgetSpent(account.key.token_budget!, share.start, share.seen!.drawn.used, headers)
        : budgetHeld(amount, headers);
  }
}

/** With what has come back since the draw, and without what was used here. */
function rateOf(share: HeldShare | undefined, limit: number, now_ms: number): RateLeft {
  const seen = share?.seen ?? null;
  if (share === undefined || seen === null) return leftOf(limit, limit - (share?.spent ?? 0));
  const back = ((now_ms - seen.at_ms) * limit) / 60_000;
  return leftOf(limit, limit - Math.max(0, seen.drawn.used + share.spent - back));
}
