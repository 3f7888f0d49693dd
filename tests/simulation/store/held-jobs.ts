import type { DetachedState, HeldJob, InventoriedJob, KeptJob } from '@flotilla/core';
import { claimed } from './claim-jobs.ts';
import { after } from './move-jobs.ts';
import { bytewise, type JobRow, type Tables } from './tables.ts';

export function heldJobs(tables: Tables, node: string): HeldJob[] {
  return heldBy(tables, node).map((job) => ({
    id: job.id,
    attempt: job.attempt,
    node,
    epoch: job.epoch!,
    replica: job.replica,
    state: job.state as HeldJob['state'],
    lane: job.lane!,
    order_key: job.order_key,
    priority: job.priority!,
    on_node_loss: job.on_node_loss!,
    failures: job.failures,
    max_attempts: job.max_attempts!,
  }));
}

function heldBy(tables: Tables, node: string): JobRow[] {
  return tables.jobs.openWhere((job) => job.node === node).sort((a, b) => bytewise(a.id, b.id));
}

export function heldNodes(tables: Tables): string[] {
  const nodes = new Set<string>();
  for (const { node } of tables.jobs.open()) if (node !== null) nodes.add(node);
  return [...nodes].sort(bytewise);
}

export function keepJobs(
  tables: Tables,
  node: string,
  epoch: number,
  replica: string,
  jobs: InventoriedJob[],
): KeptJob[] {
  const now = tables.now_ms();
  const items = new Map(jobs.map((item) => [item.id, item]));
  return [...items.values()]
    .sort((a, b) => bytewise(a.id, b.id))
    .flatMap((item) => {
      const job = tables.jobs.detached(item.id);
      if (job === undefined || job.attempt !== item.attempt || job.finished_at !== null) return [];
      const late = job.state === 'queued';
      if (!(late ? isLateResult(tables, job, node, item) : job.node === node && job.epoch! <= epoch))
        return [];
      const story = tables.attempts.get(job.id)?.get(job.attempt);
      const kept: JobRow = {
        ...job,
        node,
        epoch,
        replica,
        not_before: null,
        state: late ? 'running' : job.state,
        offered_at: late ? story!.offered_at : job.offered_at,
        started_at: late ? (story!.started_at ?? now) : job.started_at,
        deadline_at: late || item.finished ? after(now, job.run_timeout_ms) : job.deadline_at,
      };
      tables.jobs.put(kept);
      return [{ ...claimed(tables, kept, item.wants_request), state: kept.state as KeptJob['state'] }];
    });
}

/** Taken for lost with its result, and given to nobody since. */
function isLateResult(tables: Tables, job: JobRow, node: string, { finished }: InventoriedJob): boolean {
  const story = tables.attempts.get(job.id)?.get(job.attempt);
  return finished && story?.node === node && job.accepted_attempt !== job.attempt;
}

export function findDetached(tables: Tables, id: string): DetachedState | undefined {
  const job = tables.jobs.detached(id);
  return (
    job && {
      id,
      state: job.state,
      lane: job.lane!,
      order_key: job.order_key,
      priority: job.priority!,
      metadata: structuredClone(job.metadata!),
      attempt: job.attempt,
      failures: job.failures,
      max_attempts: job.max_attempts!,
      node: job.node,
      epoch: job.epoch,
      offered_at: job.offered_at,
      started_at: job.started_at,
      not_before: job.not_before,
      deadline_at: job.deadline_at,
      traceparent: job.traceparent,
    }
  );
}
