import type { JobRecord, Settlement } from '@flotilla/core';
import { storiesOf } from './stories.ts';
import { bytewise, type JobRow, type Tables } from './tables.ts';
import { addUsage } from './usage.ts';

/** A job that is settled stays as it is, unless another replica ended it because it believed the owner dead. */
export function settle(tables: Tables, batch: Settlement[]): void {
  for (const { job, attempts, usage } of firstOfEach(batch)) {
    const before = tables.jobs.get(job.id);
    if (before === undefined) tables.jobs.put(attachedRow(job));
    else if (before.attached && (before.finished_at === null || before.orphaned)) {
      const { state, error_code, error_message, finished_at } = job;
      tables.jobs.put({ ...before, state, error_code, error_message, finished_at, orphaned: false });
    } else continue;
    const stories = storiesOf(tables, job.id);
    for (const story of attempts) if (!stories.has(story.attempt)) stories.set(story.attempt, story);
    addUsage(tables, { ...usage, provisional: false });
  }
}

function firstOfEach(batch: Settlement[]): Settlement[] {
  const first = new Map<string, Settlement>();
  for (const settlement of batch) if (!first.has(settlement.job.id)) first.set(settlement.job.id, settlement);
  return [...first.values()].sort((a, b) => bytewise(a.job.id, b.job.id));
}

export function recordOpen(tables: Tables, batch: JobRecord[]): void {
  for (const job of batch) if (tables.jobs.get(job.id) === undefined) tables.jobs.put(attachedRow(job));
}

export function endOrphans(tables: Tables, replica: string, at: number): number {
  const orphans = [...tables.jobs.all()].filter(
    (job) => job.replica === replica && job.attached && job.finished_at === null,
  );
  for (const job of orphans) {
    tables.jobs.put({
      ...job,
      state: 'failed',
      error_code: 'unavailable',
      error_message: 'The control plane replica that held this request ended before the request did.',
      finished_at: at,
      orphaned: true,
    });
  }
  return orphans.length;
}

function attachedRow(job: JobRecord): JobRow {
  return {
    ...job,
    orphaned: false,
    lane: null,
    priority: null,
    metadata: null,
    idempotency_key: null,
    body_hash: null,
    on_node_loss: null,
    max_attempts: null,
    queue_timeout_ms: null,
    run_timeout_ms: null,
    attempt: 0,
    failures: 0,
    node: null,
    epoch: null,
    offered_at: null,
    started_at: null,
    not_before: null,
    deadline_at: null,
    accepted_attempt: null,
    result_digest: null,
    traceparent: null,
    reserved_tokens: null,
    accepted_by: null,
  };
}
