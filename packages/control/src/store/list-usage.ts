import type { Page, PageRequest, UsageFilter, UsageGroup, UsageRecord } from '@flotilla/core';
import { USAGE_COLUMNS } from './job-columns.ts';
import { Conditions, pageOf } from './paging.ts';
import { type Sql, wholeTable } from './sql.ts';

export async function listUsage(
  sql: Sql,
  filter: UsageFilter,
  page: PageRequest,
): Promise<Page<UsageRecord>> {
  const conditions = matching(filter);
  conditions.when(
    page.after,
    (after) => `(created_at, job) < (select created_at, job from usage where job = ${after})`,
  );
  const limit = conditions.param(page.limit + 1);
  const rows = await sql.query<UsageRecord>(
    `select ${USAGE_COLUMNS} from usage ${conditions.where} order by created_at desc, job desc limit ${limit}`,
    conditions.params,
  );
  return pageOf(rows, page.limit, (row) => row.job);
}

/** What is absent (no key: bootstrap; no node: never placed) is the group ''. Days are UTC. */
const GROUPS = {
  model: 'model',
  key: `coalesce(key, '')`,
  node: `coalesce(node, '')`,
  provider: `coalesce(provider, '')`,
  day: `to_char(to_timestamp(created_at / 1000) at time zone 'UTC', 'YYYY-MM-DD')`,
} as const;

export async function summarizeUsage(
  sql: Sql,
  filter: UsageFilter,
  by: keyof typeof GROUPS,
): Promise<UsageGroup[]> {
  const conditions = matching(filter);
  return wholeTable(sql, (tx) =>
    tx.query<UsageGroup>(
      `select ${GROUPS[by]} as "group", count(*) as requests,
       count(*) filter (where outcome not in ('succeeded', 'cancelled')) as failed,
       least(sum(prompt_tokens), ${Number.MAX_SAFE_INTEGER})::bigint as prompt_tokens,
       least(sum(completion_tokens), ${Number.MAX_SAFE_INTEGER})::bigint as completion_tokens,
       count(*) filter (where estimated) as estimated
     from usage ${conditions.where} group by 1 order by 1`,
      conditions.params,
    ),
  );
}

function matching(filter: UsageFilter): Conditions {
  const conditions = new Conditions();
  conditions.when(filter.key, (key) => `key = ${key}`);
  conditions.when(filter.model, (model) => `model = ${model}`);
  conditions.when(filter.node, (node) => `node = ${node}`);
  conditions.when(filter.provider, (provider) => `provider = ${provider}`);
  conditions.when(filter.since, (since) => `created_at >= ${since}`);
  conditions.when(filter.until, (until) => `created_at < ${until}`);
  return conditions;
}
