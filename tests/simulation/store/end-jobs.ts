import type { Cancellation, EndedJob } from '@flotilla/core';
import { storiesOf, storyOf } from './stories.ts';
import type { JobRow, Tables } from './tables.ts';
import { addUsage, estimate } from './usage.ts';

export function cancelJob(tables: Tables, id: string, message: string): Cancellation {
  const job = tables.jobs.detached(id);
  if (job === undefined) return { refused: 'unknown' };
  if (job.finished_at !== null) return { refused: 'ended' };
  return { cancelled: end(tables, job, { state: 'cancelled', code: 'cancelled', status: 499, message }) };
}

export function expireJobs(tables: Tables, limit: number, spared: readonly string[]): EndedJob[] {
  const now = tables.now_ms();
  return tables.jobs
    .openWhere((job) => job.deadline_at !== null && job.deadline_at <= now && !isSpared(job, spared))
    .sort((a, b) => a.deadline_at! - b.deadline_at!)
    .slice(0, limit)
    .map((job) => end(tables, job, job.state === 'running' ? RUN_TIMEOUT : QUEUE_TIMEOUT));
}

/** Its deadline does not count: somebody holds it, and it or its node is spared. */
export function isSpared({ id, state, node }: JobRow, spared: readonly string[]): boolean {
  return state !== 'queued' && (spared.includes(id) || spared.includes(node!));
}

interface End {
  state: EndedJob['state'];
  code: string;
  status: number;
  message: string;
}
const RUN_TIMEOUT: End = {
  state: 'timed_out',
  code: 'run_timeout',
  status: 504,
  message: 'The work ran longer than its limit.',
};
const QUEUE_TIMEOUT: End = {
  state: 'timed_out',
  code: 'queue_timeout',
  status: 504,
  message: 'No slot became free before the queue deadline.',
};

/** Whoever holds it: its node is told, and its slot is free when the node says so. */
function end(tables: Tables, job: JobRow, { state, code, status, message }: End): EndedJob {
  const { id, attempt, node, epoch } = job;
  const now = tables.now_ms();
  tables.jobs.put({
    ...job,
    state,
    error_code: code,
    error_message: message,
    finished_at: now,
    deadline_at: null,
    not_before: null,
  });
  const stories = storiesOf(tables, id);
  if (node !== null && !stories.has(attempt)) {
    stories.set(attempt, storyOf(job, { backend: null, outcome: code, code, message }, now));
  }
  const usage = estimate(tables, job, { outcome: code, status, now });
  addUsage(tables, { ...usage, provisional: node !== null });
  const body = tables.bodies.get(id);
  if (body !== undefined) tables.bodies.set(id, { ...body, erase_at: now + body.retention_ms });
  const fence = node === null || epoch === null ? null : { id, attempt, node, epoch };
  return { id, state, error_code: code, fence, usage };
}
