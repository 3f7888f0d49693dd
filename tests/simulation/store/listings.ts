import type {
  JobFilter,
  KeySpending,
  Page,
  PageRequest,
  StoredJob,
  UsageFilter,
  UsageGroup,
  UsageRecord,
} from '@flotilla/core';
import type { BudgetPeriod } from '@flotilla/protocol';
import { pageOf } from '../../../packages/control/src/store/paging.ts';
import { bytewise, type JobRow, type Tables, type UsageRow } from './tables.ts';
import { told } from './usage.ts';

export function findJob(tables: Tables, id: string): StoredJob | undefined {
  const job = tables.jobs.get(id);
  return job && stored(tables, job);
}

export function listJobs(tables: Tables, filter: JobFilter, { limit, after }: PageRequest): Page<StoredJob> {
  const { key, model, state } = filter;
  const rows = [...tables.jobs.all()]
    .filter((job) => isEach(job, { key, model, state }) && (after === undefined || job.id < after))
    .sort((a, b) => bytewise(b.id, a.id))
    .slice(0, limit + 1)
    .map((job) => stored(tables, job));
  return pageOf(rows, limit, ({ id }) => id);
}

function stored(tables: Tables, job: JobRow): StoredJob {
  const stories = [...(tables.attempts.get(job.id)?.values() ?? [])];
  return {
    id: job.id,
    kind: job.kind,
    attached: job.attached,
    state: job.state,
    replica: job.replica,
    key: job.key,
    model: job.model,
    operation: job.operation,
    request_id: job.request_id,
    order_key: job.order_key,
    error_code: job.error_code,
    error_message: job.error_message,
    created_at: job.created_at,
    finished_at: job.finished_at,
    attempts: stories.map((story) => ({ ...story })).sort((a, b) => a.attempt - b.attempt),
  };
}

export function listUsage(
  tables: Tables,
  filter: UsageFilter,
  { limit, after }: PageRequest,
): Page<UsageRecord> {
  const last = after === undefined ? undefined : tables.usage.get(after);
  const rows =
    after !== undefined && last === undefined
      ? []
      : matching(tables, filter)
          .sort(newestFirst)
          .filter((row) => last === undefined || newestFirst(last, row) < 0)
          .slice(0, limit + 1)
          .map(told);
  return pageOf(rows, limit, ({ job }) => job);
}

function newestFirst(a: UsageRow, b: UsageRow): number {
  return b.created_at - a.created_at || bytewise(b.job, a.job);
}

const GROUPS = {
  model: (row: UsageRow) => row.model,
  key: (row: UsageRow) => row.key ?? '',
  node: (row: UsageRow) => row.node ?? '',
  provider: (row: UsageRow) => row.provider ?? '',
  day: (row: UsageRow) => new Date(row.created_at).toISOString().slice(0, 10),
};

export function summarizeUsage(tables: Tables, filter: UsageFilter, by: keyof typeof GROUPS): UsageGroup[] {
  const groups = Map.groupBy(matching(tables, filter), GROUPS[by]);
  return [...groups.keys()].sort(bytewise).map((group) => {
    const rows = groups.get(group)!;
    return {
      group,
      requests: rows.length,
      failed: rows.filter(({ outcome }) => outcome !== 'succeeded' && outcome !== 'cancelled').length,
      prompt_tokens: sum(rows.map(({ prompt_tokens }) => prompt_tokens)),
      completion_tokens: sum(rows.map(({ completion_tokens }) => completion_tokens)),
      estimated: rows.filter(({ estimated }) => estimated).length,
    };
  });
}

export function loadSpending(tables: Tables, since: Record<BudgetPeriod, number>): KeySpending[] {
  const spent = new Map<string, { at: number; tokens: number }[]>();
  const add = (key: string, at: number, tokens: number) => {
    const list = spent.get(key) ?? [];
    list.push({ at, tokens });
    spent.set(key, list);
  };
  for (const row of tables.usage.values()) {
    if (row.key !== null) add(row.key, row.created_at, row.prompt_tokens + row.completion_tokens);
  }
  for (const [key, days] of tables.swept_usage) for (const [day, tokens] of days) add(key, day, tokens);
  return [...spent].map(([key, list]) => {
    const from = (start: number) => sum(list.filter(({ at }) => at >= start).map(({ tokens }) => tokens));
    return {
      key,
      day: from(since.day),
      week: from(since.week),
      month: from(since.month),
      total: from(since.total),
    };
  });
}

/** Ends at the last integer. */
function sum(numbers: number[]): number {
  return Math.min(
    numbers.reduce((total, number) => total + number, 0),
    Number.MAX_SAFE_INTEGER,
  );
}

function matching(tables: Tables, { since, until, ...filter }: UsageFilter): UsageRow[] {
  return [...tables.usage.values()].filter(
    (row) =>
      isEach(row, filter) &&
      (since === undefined || row.created_at >= since) &&
      (until === undefined || row.created_at < until),
  );
}

/** Whether the row has each value that is asked for. */
function isEach<Row extends object>(
  row: Row,
  wanted: { [Column in keyof Row]?: Row[Column] | undefined },
): boolean {
  return Object.entries(wanted).every(
    ([column, value]) => value === undefined || row[column as keyof Row] === value,
  );
}
