import type { Requeue, ResultOutcome } from '@flotilla/core';
import { NOW_MS, prepared, type Sql } from '../sql.ts';
import { FENCE_TYPES, HELD, moveJobs, RESULT_OUTCOME, TELL_STORY } from './fence.ts';

const statement = prepared(
  'requeue-jobs',
  `with now as materialized (select ${NOW_MS} as ms),
   input as materialized (
     select * from jsonb_to_recordset($1::jsonb) as r (${FENCE_TYPES}, backend text, outcome text, code text,
       message text, delay_ms bigint, counts boolean, digest text, lane text)),
   ${HELD},
   story as (${TELL_STORY}),
   moved as (
     update jobs j
     set state = 'queued', lane = input.lane, node = null, epoch = null, offered_at = null, started_at = null,
       -- The run's deadline went with its attempt: from now on it waits as long as a new job would.
       deadline_at = case when j.started_at is null then j.deadline_at else now.ms + j.queue_timeout_ms end,
       not_before = case when input.delay_ms > 0 then now.ms + input.delay_ms end,
       failures = j.failures + case when input.counts then 1 else 0 end,
       accepted_attempt = case when input.digest is null then j.accepted_attempt else j.attempt end,
       result_digest = coalesce(input.digest, j.result_digest)
     from held join input using (id), now
     where j.id = held.id and held.holds)
   select id, ${RESULT_OUTCOME} as outcome from held join input using (id)`,
);

export function requeueJobs(sql: Sql, batch: Requeue[]): Promise<ResultOutcome[]> {
  return moveJobs(sql, statement, batch);
}
