import type { Store, UsageFilter, UsageRecord } from '@flotilla/core';
import { FlotillaError, type UsageRow } from '@flotilla/protocol';
import type { Principal } from '../accounts/principal.ts';
import { iso } from './iso.ts';
import { notFound, pageRequest } from './paging.ts';
import type { Handlers } from './routing.ts';

interface UsageQuery {
  key?: string | undefined;
  model?: string | undefined;
  node?: string | undefined;
  since?: string | undefined;
  until?: string | undefined;
}

export function usageRoutes(
  store: Pick<Store, 'listUsage' | 'summarizeUsage'>,
): Pick<Handlers, 'usage' | 'usageSummary'> {
  return {
    async usage({ query, principal }) {
      const page = await store.listUsage(filterOf(query, principal), pageRequest(query, 'job'));
      return { data: page.rows.map((row) => usageRow(row, principal)), next_after: page.next_after };
    },
    async usageSummary({ query, principal }) {
      if (query.by === 'node') requireNodes(principal, 'by');
      return { data: await store.summarizeUsage(filterOf(query, principal), query.by) };
    },
  };
}

/** Without admin a key reads its own usage: another key does not exist for it. */
function filterOf(query: UsageQuery, principal: Principal): UsageFilter {
  if (query.node !== undefined) requireNodes(principal, 'node');
  const own = principal.key.id;
  if (!principal.admin && query.key !== undefined && query.key !== own) throw notFound('key', query.key);
  const key = principal.admin ? query.key : own;
  return {
    ...(key !== undefined && { key }),
    ...(query.model !== undefined && { model: query.model }),
    ...(query.node !== undefined && { node: query.node }),
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
  return { ...row, node: principal.has('nodes:read') ? row.node : null, created_at: iso(row.created_at) };
}
