import type { RetentionLimits, SweepResult } from '@flotilla/core';
import { type IdKind, makeId } from '@flotilla/protocol';
import { bytewise, type Tables, type UsageRow } from './tables.ts';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
/** Older days become one sum a key. */
const FOLD_AFTER_MS = 40 * DAY_MS;

export function sweep(
  tables: Tables,
  { jobs_ms, usage_ms, batch }: RetentionLimits,
  now: number,
): SweepResult {
  foldSwept(tables, now - FOLD_AFTER_MS);
  const expired = ({ expires_at }: { expires_at: number | null }) =>
    expires_at !== null && expires_at < now - DAY_MS;
  return {
    jobs: sweepJobs(tables, now - jobs_ms, batch),
    usage: sweepUsage(tables, now - usage_ms, batch),
    tokens: drop(tables.tokens, expired, batch),
    credentials: drop(tables.credentials, expired, batch),
    audit: 0,
    discoveries: drop(
      tables.discoveries,
      ({ id, finished_at }) => id < firstIdOf('discovery', now - HOUR_MS) && finished_at !== null,
      batch,
    ),
  };
}

function drop<Row>(rows: Map<string, Row>, isOver: (row: Row) => boolean, batch: number): number {
  const over = [...rows]
    .filter(([, row]) => isOver(row))
    .sort(([a], [b]) => bytewise(a, b))
    .slice(0, batch);
  for (const [id] of over) rows.delete(id);
  return over.length;
}

function sweepJobs(tables: Tables, before: number, batch: number): number {
  const first = firstIdOf('job', before);
  const over = [...tables.jobs.all()]
    .filter(({ id, finished_at }) => id < first && finished_at !== null && finished_at < before)
    .sort((a, b) => bytewise(a.id, b.id))
    .slice(0, batch);
  for (const job of over) {
    tables.jobs.delete(job);
    tables.attempts.delete(job.id);
    tables.bodies.delete(job.id);
  }
  return over.length;
}

function sweepUsage(tables: Tables, before: number, batch: number): number {
  const over = [...tables.usage.values()]
    .filter(({ created_at }) => created_at < before)
    .sort((a, b) => a.created_at - b.created_at)
    .slice(0, batch);
  for (const row of over) {
    tables.usage.delete(row.job);
    if (row.key !== null) addSwept(tables, row.key, dayOf(row), row.prompt_tokens + row.completion_tokens);
  }
  return over.length;
}

function foldSwept(tables: Tables, before: number): void {
  for (const [key, days] of tables.swept_usage) {
    for (const [day, tokens] of days) {
      if (day === 0 || day >= before) continue;
      days.delete(day);
      addSwept(tables, key, 0, tokens);
    }
  }
}

function addSwept(tables: Tables, key: string, day: number, tokens: number): void {
  const days = tables.swept_usage.get(key) ?? new Map<number, number>();
  days.set(day, (days.get(day) ?? 0) + tokens);
  tables.swept_usage.set(key, days);
}

function dayOf({ created_at }: UsageRow): number {
  return created_at - (created_at % DAY_MS);
}

/** The smallest id that something of this kind made at this time can have. */
function firstIdOf(kind: IdKind, wall_ms: number): string {
  return makeId(kind, Math.max(0, wall_ms), new Uint8Array(10));
}
