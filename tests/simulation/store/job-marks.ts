import type { JobMark } from '@flotilla/core';
import type { Tables } from './tables.ts';

export function jobMarks(tables: Tables, ids: readonly string[]): JobMark[] {
  return ids.flatMap((id) => {
    const job = tables.jobs.detached(id);
    if (job === undefined) return [];
    const { state, attempt, epoch, started_at, finished_at, deadline_at } = job;
    const mark = [state, attempt, epoch ?? 0, started_at ?? 0, finished_at ?? 0, deadline_at ?? 0];
    return [{ id, mark: mark.join(' ') }];
  });
}
