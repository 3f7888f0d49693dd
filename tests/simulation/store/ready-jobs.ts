import type { ReadyLane } from '@flotilla/core';
import { isSpared } from './end-jobs.ts';
import { bytewise, type JobRow, type Tables } from './tables.ts';

export function nextDue(tables: Tables, spared: readonly string[]): number | null {
  let first = Infinity;
  for (const job of tables.jobs.open()) {
    if (job.deadline_at !== null && !isSpared(job, spared)) first = Math.min(first, job.deadline_at);
    if (job.not_before !== null) first = Math.min(first, job.not_before);
  }
  return first === Infinity ? null : first - tables.now_ms();
}

export function readyJobs(tables: Tables, limit: number): ReadyLane[] {
  const now = tables.now_ms();
  const over = tables.jobs
    .openWhere(({ not_before }) => not_before !== null && not_before <= now)
    .sort((a, b) => a.not_before! - b.not_before!)
    .slice(0, limit);
  for (const job of over) tables.jobs.put({ ...job, not_before: null });
  const first = new Map<string, ReadyLane>();
  for (const { lane, order_key, priority } of over) {
    const known = first.get(lane!);
    if (known === undefined || order_key < known.order_key)
      first.set(lane!, { lane: lane!, order_key, priority: priority! });
  }
  return [...first.values()].sort((a, b) => bytewise(a.lane, b.lane));
}

export function readyLanes(tables: Tables, limit: number, after: string): ReadyLane[] {
  return [...tables.jobs.lanes()]
    .filter((lane) => lane > after)
    .sort(bytewise)
    .slice(0, limit)
    .map((lane) => {
      const [{ order_key, priority }] = tables.jobs.ready(lane) as [JobRow];
      return { lane, order_key, priority: priority! };
    });
}
