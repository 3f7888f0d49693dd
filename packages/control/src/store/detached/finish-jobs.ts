import type { Finish, ResultOutcome } from '@flotilla/core';
import { promptEstimate, USAGE_COLUMNS, USAGE_TYPES, served } from '../job-columns.ts';
import { NOW_MS, prepared, type Sql } from '../sql.ts';
import { FENCE_TYPES, HELD, moveJobs, RESULT_OUTCOME, tellStory } from './fence.ts';

/**
 * State, story, usage, result and the end of the body's retention in one: a job has all of them or none. Where nobody
 * brings a usage row, the store writes one of what it knows, which the node's word may replace when it comes back.
 */
const statement = prepared(
  'finish-jobs',
  `with now as materialized (select ${NOW_MS} as ms),
   input as materialized (
     select * from jsonb_to_recordset($1::jsonb) as r (${FENCE_TYPES}, backend text, outcome text, code text,
       message text, state text, digest text, error_code text, error_message text, result text, usage jsonb, provisional boolean)),
   ${HELD},
   story as (${tellStory()}),
   used as (
     insert into usage (${USAGE_COLUMNS}, provisional)
     select ${USAGE_COLUMNS}, provisional from jsonb_to_recordset((
       select jsonb_agg(input.usage || jsonb_build_object('provisional', input.provisional)) from input join held using (id)
       where held.holds and jsonb_typeof(input.usage) = 'object')) as u (${USAGE_TYPES}, provisional boolean)
     on conflict do nothing),
   uncounted as (
     insert into usage (${USAGE_COLUMNS}, provisional)
     select j.id, j.request_id, j.key, j.model, j.operation, ${served('j.node')}, coalesce(input.error_code, input.state), 502,
       j.attempt, ${promptEstimate('j.started_at', 'j.id')}, 0, 0, true,
       greatest(0, coalesce(j.offered_at, now.ms) - j.created_at), null, greatest(0, now.ms - j.created_at), j.created_at,
       true
     from held join input using (id) join jobs j using (id), now
     where held.holds and jsonb_typeof(input.usage) is distinct from 'object'
     on conflict do nothing),
   bodies as (
     update job_bodies b set result = input.result, erase_at = now.ms + b.retention_ms
     from held join input using (id), now
     where b.job = held.id and held.holds),
   moved as (
     update jobs j
     set state = input.state, error_code = input.error_code, error_message = input.error_message,
       finished_at = now.ms, deadline_at = null, accepted_attempt = j.attempt, result_digest = input.digest
     from held join input using (id), now
     where j.id = held.id and held.holds)
   select held.id, ${RESULT_OUTCOME} as outcome from held join input using (id)`,
);

export function finishJobs(sql: Sql, batch: Finish[]): Promise<ResultOutcome[]> {
  return moveJobs(sql, statement, batch);
}
