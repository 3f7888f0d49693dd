import { BYTES_PER_TOKEN, type Reservation, type UsageRecord, type UsageWord } from '@flotilla/core';
import { served } from './stories.ts';
import { bytewise, type JobRow, type Tables, type UsageRow } from './tables.ts';

/** A job has one row; who comes later changes nothing. */
export function addUsage(tables: Tables, row: UsageRow): void {
  if (!tables.usage.has(row.job)) tables.usage.set(row.job, row);
}

/** What a job must have used where nobody has told: by the bytes of its request, if it had started. */
export function estimate(
  tables: Tables,
  job: JobRow,
  { outcome, status, now }: { outcome: string; status: number; now: number },
): UsageRecord {
  const request = tables.bodies.get(job.id)?.request ?? '';
  return {
    job: job.id,
    request_id: job.request_id,
    key: job.key,
    model: job.model,
    operation: job.operation,
    ...served(job.node),
    outcome,
    status,
    attempts: job.attempt,
    prompt_tokens: job.started_at === null ? 0 : Math.ceil(Buffer.byteLength(request) / BYTES_PER_TOKEN),
    completion_tokens: 0,
    cached_tokens: 0,
    estimated: true,
    queue_ms: Math.max(0, (job.offered_at ?? now) - job.created_at),
    first_byte_ms: null,
    total_ms: Math.max(0, now - job.created_at),
    created_at: job.created_at,
  };
}

export function told({ provisional: _, ...row }: UsageRow): UsageRecord {
  return row;
}

export function findUsage(tables: Tables, jobs: readonly string[]): UsageRecord[] {
  return [...new Set(jobs)].flatMap((job) => {
    const row = tables.usage.get(job);
    return row === undefined ? [] : [told(row)];
  });
}

export function correctUsage(tables: Tables, batch: UsageWord[]): void {
  for (const { job, attempt, node, prompt_tokens, completion_tokens, cached_tokens, estimated } of batch) {
    const row = tables.usage.get(job);
    if (row === undefined || !row.provisional) continue;
    if (row.attempts !== attempt || (row.node ?? row.provider) !== node) continue;
    const counted = { prompt_tokens, completion_tokens, cached_tokens, estimated };
    tables.usage.set(job, { ...row, ...counted, provisional: false });
  }
}

export function loadReservations(tables: Tables, limit: number): Reservation[] {
  return tables.jobs
    .openWhere(({ attached, key }) => !attached && key !== null)
    .flatMap(({ id: job, key, reserved_tokens: tokens, created_at }) =>
      tokens === null ? [] : [{ job, key: key!, tokens, created_at }],
    )
    .sort((a, b) => bytewise(a.job, b.job))
    .slice(0, limit);
}
