import type { KeySpending } from '@flotilla/core';
import type { BudgetPeriod } from '@flotilla/protocol';
import { type Sql, wholeTable } from './sql.ts';

/** Rows of before there was a bound on what a server may tell can add up to more than JavaScript can hold. */
const MOST = Number.MAX_SAFE_INTEGER;

/**
 * What the settled requests of each key have cost: its usage rows, and what is kept of those that were swept. One pass
 * over all rows, at start only: about half a second a million.
 */
const TEXT = `
  with spent as (
    select key, created_at as at, prompt_tokens + completion_tokens as tokens from usage where key is not null
    union all
    select key, day, tokens from swept_usage)
  select key,
    least(coalesce(sum(tokens) filter (where at >= $1), 0), ${MOST})::bigint as day,
    least(coalesce(sum(tokens) filter (where at >= $2), 0), ${MOST})::bigint as week,
    least(coalesce(sum(tokens) filter (where at >= $3), 0), ${MOST})::bigint as month,
    least(coalesce(sum(tokens) filter (where at >= $4), 0), ${MOST})::bigint as total
  from spent group by key`;

export function loadSpending(sql: Sql, since: Record<BudgetPeriod, number>): Promise<KeySpending[]> {
  return wholeTable(sql, (tx) =>
    tx.query<KeySpending>(TEXT, [since.day, since.week, since.month, since.total]),
  );
}
