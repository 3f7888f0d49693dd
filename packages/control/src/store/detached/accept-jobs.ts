import type { Acceptance, DetachedJob, IdempotentJob } from '@flotilla/core';
import { type Columns, columnsOf, unnested } from '../columns.ts';
import { encode } from '../json.ts';
import { NOW_MS, prepared, type Sql } from '../sql.ts';

const COLUMNS = {
  id: 'text',
  kind: 'text',
  replica: 'text',
  key: 'text',
  model: 'text',
  operation: 'text',
  request_id: 'text',
  lane: 'text',
  order_key: 'bigint',
  priority: 'bigint',
  metadata: 'jsonb',
  request: 'text',
  retention_ms: 'bigint',
  on_node_loss: 'text',
  max_attempts: 'bigint',
  queue_timeout_ms: 'bigint',
  run_timeout_ms: 'bigint',
  idempotency_key: 'text',
  body_hash: 'text',
  traceparent: 'text',
  reserved_tokens: 'bigint',
  created_at: 'bigint',
} as const satisfies Columns;

/**
 * Two steps, because a statement does not see what another replica commits while it runs: the insert skips what is
 * there, by id (the same batch again) or by idempotency key, and a second look tells which of both it was.
 */
const insert = prepared(
  'accept-jobs',
  `with input as materialized (${unnested(COLUMNS)}),
   added as (
     insert into jobs (id, kind, attached, state, replica, key, model, operation, request_id, lane, order_key,
       priority, metadata, on_node_loss, max_attempts, queue_timeout_ms, run_timeout_ms,
       idempotency_key, body_hash, traceparent, reserved_tokens, accepted_by, created_at, deadline_at)
     select id, kind, false, 'queued', replica, key, model, operation, request_id, lane, order_key,
       priority, metadata, on_node_loss, max_attempts, queue_timeout_ms, run_timeout_ms,
       idempotency_key, body_hash, traceparent, reserved_tokens, replica, created_at,
       ${NOW_MS} + queue_timeout_ms
     from input
     on conflict do nothing
     returning id),
   bodies as (
     insert into job_bodies (job, request, retention_ms)
     select id, request, retention_ms from input where id in (select id from added)
     on conflict do nothing)
   select id from added`,
);

const look = prepared(
  'accept-jobs-look',
  `select input.id, j.id as found, j.id = input.id or j.body_hash = input.body_hash as same
   from json_to_recordset($1::json) as input (id text, key text, idempotency_key text, body_hash text)
   join jobs j on j.id = input.id
     or (j.idempotency_key = input.idempotency_key and j.key is not distinct from input.key)`,
);

export async function acceptJobs(sql: Sql, batch: DetachedJob[]): Promise<Acceptance[]> {
  if (batch.length === 0) return [];
  const added = new Set(
    (await sql.query<{ id: string }>(insert, columnsOf(COLUMNS, inOrder(batch).map(flat)))).map(
      ({ id }) => id,
    ),
  );
  const left = batch.filter(({ id }) => !added.has(id));
  const found = left.length === 0 ? new Map<string, Acceptance>() : await lookFor(sql, left);
  return batch.map(({ id }) => {
    if (added.has(id)) return { accepted: id };
    const acceptance = found.get(id);
    if (acceptance === undefined) throw new Error(`Job ${id} was neither added nor there; send it again.`);
    return acceptance;
  });
}

/** In order of idempotency key, so that batches which share some cannot wait for each other; else as they came. */
function inOrder(batch: DetachedJob[]): DetachedJob[] {
  const keyOf = (job: DetachedJob) => job.idempotency?.key ?? '';
  return batch.toSorted((a, b) => Number(keyOf(a) > keyOf(b)) - Number(keyOf(a) < keyOf(b)));
}

function flat({ idempotency, ...job }: DetachedJob) {
  return { ...job, idempotency_key: idempotency?.key ?? null, body_hash: idempotency?.body_hash ?? null };
}

async function lookFor(sql: Sql, jobs: DetachedJob[]): Promise<Map<string, Acceptance>> {
  const input = jobs
    .map(flat)
    .map(({ id, key, idempotency_key, body_hash }) => ({ id, key, idempotency_key, body_hash }));
  const rows = await sql.query<{ id: string; found: string; same: boolean }>(look, [encode(input)]);
  return new Map(rows.map((row) => [row.id, verdict(row)]));
}

/** Jobs that are not to be added are known by their place here, which is no job's id. */
export async function findReplayed(sql: Sql, batch: IdempotentJob[]): Promise<(Acceptance | null)[]> {
  const input = batch.map(({ key, idempotency }, place) => ({
    id: String(place),
    key,
    idempotency_key: idempotency.key,
    body_hash: idempotency.body_hash,
  }));
  const rows = await sql.query<{ id: string; found: string; same: boolean }>(look, [encode(input)]);
  const found = new Map(rows.map((row) => [row.id, verdict(row)]));
  return batch.map((_, place) => found.get(String(place)) ?? null);
}

function verdict({ id, found, same }: { id: string; found: string; same: boolean }): Acceptance {
  if (found === id) return { accepted: id };
  return same ? { existing: found } : { conflict: found };
}
