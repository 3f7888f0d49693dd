import type { Finish, JobFence, Requeue, ResultOutcome } from '@flotilla/core';
import { addUsage, estimate } from './usage.ts';
import { storiesOf, storyOf, tellStory } from './stories.ts';
import type { JobRow, Tables } from './tables.ts';

export function startJobs(tables: Tables, batch: JobFence[]): ResultOutcome[] {
  return batch.map((fence) => {
    const job = tables.jobs.detached(fence.id);
    if (job === undefined || !holds(job, fence)) return 'stale';
    if (job.state === 'running') return 'duplicate';
    const now = tables.now_ms();
    tables.jobs.put({
      ...job,
      state: 'running',
      started_at: now,
      deadline_at: after(now, job.run_timeout_ms),
    });
    return 'accepted';
  });
}

export function requeueJobs(tables: Tables, batch: Requeue[]): ResultOutcome[] {
  return batch.map((requeue) => {
    const job = tables.jobs.detached(requeue.id);
    if (job === undefined || !holds(job, requeue)) return refusal(job, requeue);
    const now = tables.now_ms();
    const since = fold(tables, job, requeue);
    tellStory(tables, job.id, storyOf(job, requeue, now, since));
    tables.jobs.put({
      ...job,
      state: 'queued',
      lane: requeue.lane,
      node: null,
      epoch: null,
      offered_at: null,
      started_at: null,
      deadline_at: job.started_at === null ? job.deadline_at : now + job.queue_timeout_ms!,
      not_before: requeue.delay_ms > 0 ? now + requeue.delay_ms : null,
      failures: job.failures + (requeue.counts ? 1 : 0),
      accepted_attempt: requeue.digest === null ? job.accepted_attempt : job.attempt,
      result_digest: requeue.digest ?? job.result_digest,
    });
    return 'accepted';
  });
}

export function finishJobs(tables: Tables, batch: Finish[]): ResultOutcome[] {
  return batch.map((finish) => {
    const row = tables.jobs.detached(finish.id);
    if (row === undefined || !holds(row, finish)) return refusal(row, finish);
    const now = tables.now_ms();
    const ago_ms = finish.started_ago_ms;
    const job = { ...row, started_at: row.started_at ?? (ago_ms === undefined ? null : now - ago_ms) };
    tellStory(tables, job.id, storyOf(job, finish, now));
    if (finish.usage !== null) addUsage(tables, { ...finish.usage, provisional: finish.provisional });
    else {
      const outcome = finish.error_code ?? finish.state;
      addUsage(tables, { ...estimate(tables, job, { outcome, status: 502, now }), provisional: true });
    }
    const body = tables.bodies.get(job.id);
    if (body !== undefined) {
      tables.bodies.set(job.id, { ...body, result: finish.result, erase_at: now + body.retention_ms });
    }
    tables.jobs.put({
      ...job,
      state: finish.state,
      error_code: finish.error_code,
      error_message: finish.error_message,
      finished_at: now,
      deadline_at: null,
      accepted_attempt: job.attempt,
      result_digest: finish.digest,
    });
    return 'accepted';
  });
}

export function after(now: number, limit_ms: number | null): number | null {
  return limit_ms === null ? null : now + limit_ms;
}

/** Whether the fence is the one that counts now. */
function holds(job: JobRow, { attempt, node, epoch }: JobFence): boolean {
  return (
    (job.state === 'leased' || job.state === 'running') &&
    job.attempt === attempt &&
    job.node === node &&
    job.epoch === epoch
  );
}

/** What a result is answered with that comes under another fence. */
function refusal(
  job: JobRow | undefined,
  { attempt, digest }: { attempt: number; digest: string | null },
): ResultOutcome {
  if (job === undefined || job.accepted_attempt !== attempt) return 'stale';
  return digest !== null && job.result_digest === digest ? 'duplicate' : 'conflict';
}

/**
 * Equal rejections of one node are one story: takes the older ones away, unless anything but rejections came in between.
 * @returns when the first of them was offered
 */
function fold(tables: Tables, job: JobRow, { outcome, message }: Requeue): number {
  let since = job.offered_at!;
  if (outcome !== 'rejected') return since;
  const stories = storiesOf(tables, job.id);
  const all = [...stories.values()];
  const others = all.filter((story) => story.outcome !== 'rejected').map(({ attempt }) => attempt);
  const folded = all.filter(
    (story) =>
      story.attempt < job.attempt &&
      story.outcome === 'rejected' &&
      story.node === job.node &&
      story.message === message &&
      !others.some((attempt) => attempt > story.attempt),
  );
  for (const story of folded) stories.delete(story.attempt);
  if (folded.length > 0) since = Math.min(...folded.map(({ offered_at }) => offered_at));
  return since;
}
