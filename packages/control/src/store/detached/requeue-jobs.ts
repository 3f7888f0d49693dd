import type { Requeue, ResultOutcome } from '@flotilla/core';
import { type Columns, columnsOf, unnested } from '../columns.ts';
import { NOW_MS, prepared, type Sql } from '../sql.ts';
import { heldWith, moveJobs, RESULT_OUTCOME, STORY, tellStory } from './fence.ts';

const COLUMNS = {
  ...STORY,
  delay_ms: 'bigint',
  counts: 'boolean',
  digest: 'text',
  lane: 'text',
} as const satisfies Columns;

/**
 * A rejection takes the place of an equal one of the same node, unless anything but rejections came in between: a node
 * that cannot take the job today would fill the table with it. The story tells the first offer and the last answer.
 */
const statement = prepared(
  'requeue-jobs',
  `with now as materialized (select ${NOW_MS} as ms),
   input as materialized (${unnested(COLUMNS)}),
   ${heldWith('backend, outcome, code, message, delay_ms, counts, digest, input.lane')},
   folded as (
     delete from attempts a using held
     where held.outcome = 'rejected' and held.holds and a.job = held.id and a.attempt < held.attempt
       and a.outcome = 'rejected' and a.node = held.node and a.message is not distinct from held.message
       and not exists (
         select from attempts b where b.job = a.job and b.attempt > a.attempt and b.outcome <> 'rejected')
     returning a.job, a.offered_at),
   story as (${tellStory('coalesce((select min(offered_at) from folded where job = held.id), offered_at)')}),
   moved as (
     update jobs j
     set state = 'queued', lane = held.lane, node = null, epoch = null, offered_at = null, started_at = null,
       -- The run's deadline went with its attempt: from now on it waits as long as a new job would.
       deadline_at = case when j.started_at is null then j.deadline_at else now.ms + j.queue_timeout_ms end,
       not_before = case when held.delay_ms > 0 then now.ms + held.delay_ms end,
       failures = j.failures + case when held.counts then 1 else 0 end,
       accepted_attempt = case when held.digest is null then j.accepted_attempt else j.attempt end,
       result_digest = coalesce(held.digest, j.result_digest)
     from held, now
     where j.id = held.id and held.holds)
   select id, ${RESULT_OUTCOME} as outcome from held`,
);

export function requeueJobs(sql: Sql, batch: Requeue[]): Promise<ResultOutcome[]> {
  return moveJobs(sql, statement, batch, (requeues) => columnsOf(COLUMNS, requeues));
}
