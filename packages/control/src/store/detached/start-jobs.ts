import type { JobFence, ResultOutcome } from '@flotilla/core';
import { columnsOf, unnested } from '../columns.ts';
import { NOW_MS, prepared, type Sql } from '../sql.ts';
import { FENCE, heldWith, moveJobs } from './fence.ts';

const statement = prepared(
  'start-jobs',
  `with now as materialized (select ${NOW_MS} as ms),
   input as materialized (${unnested(FENCE)}),
   ${heldWith()},
   moved as (
     update jobs j
     set state = 'running', started_at = now.ms, deadline_at = now.ms + j.run_timeout_ms
     from held, now
     where j.id = held.id and held.holds and held.state = 'leased')
   select id, case
     when not holds then 'stale'
     when state = 'leased' then 'accepted'
     else 'duplicate' end as outcome
   from held`,
);

export function startJobs(sql: Sql, batch: JobFence[]): Promise<ResultOutcome[]> {
  return moveJobs(sql, statement, batch, (fences) => columnsOf(FENCE, fences));
}
