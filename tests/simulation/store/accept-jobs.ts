import type { Acceptance, DetachedJob, IdempotentJob } from '@flotilla/core';
import { bytewise, type JobRow, type Tables } from './tables.ts';

export function acceptJobs(tables: Tables, batch: DetachedJob[]): Acceptance[] {
  const added = new Set<string>();
  for (const job of inOrder(batch)) {
    if (tables.jobs.get(job.id) !== undefined || sameKey(tables, job) !== undefined) continue;
    tables.jobs.put(newJob(job, tables.now_ms()));
    const { request, retention_ms } = job;
    if (!tables.bodies.has(job.id))
      tables.bodies.set(job.id, { request, result: null, retention_ms, erase_at: null });
    added.add(job.id);
  }
  return batch.map((job) => {
    if (added.has(job.id) || tables.jobs.get(job.id) !== undefined) return { accepted: job.id };
    const found = sameKey(tables, job)!;
    return found.body_hash === job.idempotency?.body_hash ? { existing: found.id } : { conflict: found.id };
  });
}

export function findReplayed(tables: Tables, batch: IdempotentJob[]): (Acceptance | null)[] {
  return batch.map(({ key, idempotency }) => {
    const found = tables.jobs.idempotent(idempotency.key, key);
    if (found === undefined) return null;
    return found.body_hash === idempotency.body_hash ? { existing: found.id } : { conflict: found.id };
  });
}

/** As the real one sends them: who is first has the key. */
function inOrder(batch: DetachedJob[]): DetachedJob[] {
  return batch.toSorted((a, b) => bytewise(a.idempotency?.key ?? '', b.idempotency?.key ?? ''));
}

function sameKey(tables: Tables, { idempotency, key }: DetachedJob): JobRow | undefined {
  return idempotency === null ? undefined : tables.jobs.idempotent(idempotency.key, key);
}

function newJob(job: DetachedJob, now: number): JobRow {
  return {
    id: job.id,
    kind: job.kind,
    attached: false,
    state: 'queued',
    replica: job.replica,
    key: job.key,
    model: job.model,
    operation: job.operation,
    request_id: job.request_id,
    order_key: job.order_key,
    error_code: null,
    error_message: null,
    created_at: job.created_at,
    finished_at: null,
    orphaned: false,
    lane: job.lane,
    priority: job.priority,
    metadata: job.metadata,
    idempotency_key: job.idempotency?.key ?? null,
    body_hash: job.idempotency?.body_hash ?? null,
    on_node_loss: job.on_node_loss,
    max_attempts: job.max_attempts,
    queue_timeout_ms: job.queue_timeout_ms,
    run_timeout_ms: job.run_timeout_ms,
    attempt: 0,
    failures: 0,
    node: null,
    epoch: null,
    offered_at: null,
    started_at: null,
    not_before: null,
    deadline_at: now + job.queue_timeout_ms,
    accepted_attempt: null,
    result_digest: null,
    traceparent: job.traceparent,
    reserved_tokens: job.reserved_tokens,
    accepted_by: job.replica,
  };
}
