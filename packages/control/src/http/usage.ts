import type { Store, UsageFilter, UsageRecord } from '@flotilla/core';
import { FlotillaError, type UsageRow } from '@flotilla/protocol';
import type { Keys } from '../accounts/keys.ts';
import type { Limits } from '../accounts/limits.ts';
import type { Principal } from '../accounts/principal.ts';
import { iso } from './iso.ts';
import { notFound, pageRequest } from './paging.ts';
import type { Handlers } from './routing.ts';

interface UsageQuery {
  key?: string | undefined;
  model?: string | undefined;
  node?: string | undefined;
  provider?: string | undefined;
  since?: string | undefined;
  until?: string | undefined;
}

/** More would wait for longer than their clients do. */
const SUMMARIES_MOST = 16;

export interface UsageDeps {
  store: Pick<Store, 'listUsage' | 'summarizeUsage'>;
  keys: Pick<Keys, 'find'>;
  limits: Pick<Limits, 'left'>;
}

export function usageRoutes({
  store,
  keys,
  limits,
}: UsageDeps): Pick<Handlers, 'usage' | 'usageSummary' | 'usageLimits'> {
  const inTurn = oneAtATime();
  return {
    async usage({ query, principal }) {
      const page = await store.listUsage(filterOf(query, principal), pageRequest(query, 'job'));
      return { data: page.rows.map((row) => usageRow(row, principal)), next_after: page.next_after };
    },
    async usageSummary({ query, principal }) {
      if (query.by === 'node' || query.by === 'provider') requireNodes(principal, 'by');
      const filter = filterOf(query, principal);
      return { data: await inTurn(() => store.summarizeUsage(filter, query.by)) };
    },
    usageLimits({ query, principal }) {
      const id = query.key ?? principal.key.id;
      const key = id === principal.key.id || principal.admin ? keys.find(id) : undefined;
      if (key === undefined) throw notFound('key', id);
      return limits.left(key);
    },
  };
}

/**
 * A summary reads all rows that it counts, for as long as half a second where there are a million: several at once
 * would keep the records of requests waiting, and with them everybody's answers.
 */
function oneAtATime() {
  let waiting = 0;
  let last: Promise<unknown> = Promise.resolve();
  return <T>(run: () => Promise<T>): Promise<T> => {
    if (waiting >= SUMMARIES_MOST) {
      throw new FlotillaError('rate_limited', 'Many summaries of usage are being made already.', {
        retry_after_ms: 1000,
      });
    }
    waiting++;
    const mine = last.then(run).finally(() => waiting--);
    last = mine.catch(() => undefined);
    return mine;
  };
}

/** Without admin a key reads its own usage: another key does not exist for it. */
function filterOf(query: UsageQuery, principal: Principal): UsageFilter {
  if (query.node !== undefined) requireNodes(principal, 'node');
  if (query.provider !== undefined) requireNodes(principal, 'provider');
  const own = principal.key.id;
  if (!principal.admin && query.key !== undefined && query.key !== own) throw notFound('key', query.key);
  const key = principal.admin ? query.key : own;
  return {
    ...(key !== undefined && { key }),
    ...(query.model !== undefined && { model: query.model }),
    ...(query.node !== undefined && { node: query.node }),
    ...(query.provider !== undefined && { provider: query.provider }),
    ...(query.since !== undefined && { since: Date.parse(query.since) }),
    ...(query.until !== undefined && { until: Date.parse(query.until) }),
  };
}

function requireNodes(principal: Principal, param: string): void {
  if (principal.has('nodes:read')) return;
  throw new FlotillaError('forbidden', 'To see which node served, a key needs the scope nodes:read.', {
    param,
  });
}

function usageRow(row: UsageRecord, principal: Principal): UsageRow {
  const served = principal.has('nodes:read') ? {} : { node: null, provider: null };
  return { ...row, ...served, created_at: iso(row.created_at) };
}
