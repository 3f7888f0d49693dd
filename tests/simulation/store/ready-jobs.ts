import type { ReadyLane } from '@flotilla/core';
import { withDeadline } from './end-jobs.ts';
import { bytewise, type JobRow, type Tables } from './tables.ts';

export function nextDue(tables: Tables, spared: readonly string[]): number | null {
  const deadlines = withDeadline(tables, spared).map(({ deadline_at }) => deadline_at!);
  const backOffs = [...tables.jobs.open()].flatMap(({ not_before }) => not_before ?? []);
  const times = [...deadlines, ...backOffs];
  return times.length === 0 ? null : Math.min(...times) - tables.now_ms();
}

export function readyJobs(tables: Tables, limit: number): string[] {
  const now = tables.now_ms();
  const over = [...tables.jobs.open()]
    .filter(({ not_before }) => not_before !== null && not_before <= now)
    .sort((a, b) => a.not_before! - b.not_before!)
    .slice(0, limit);
  for (const job of over) tables.jobs.put({ ...job, not_before: null });
  return [...new Set(over.map(({ lane }) => lane!))];
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
