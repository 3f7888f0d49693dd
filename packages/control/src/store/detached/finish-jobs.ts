import type { Finish, ResultOutcome } from '@flotilla/core';
import { type Columns, columnsOf, unnested, widthOf } from '../columns.ts';
import { promptEstimate, served, USAGE, USAGE_COLUMNS } from '../job-columns.ts';
import { NOW_MS, prepared, type Sql } from '../sql.ts';
import { heldWith, moveJobs, RESULT_OUTCOME, STORY, tellStory } from './fence.ts';

const COLUMNS = {
  ...STORY,
  state: 'text',
  digest: 'text',
  error_code: 'text',
  error_message: 'text',
  result: 'text',
  counted: 'boolean',
  started_ago_ms: 'bigint',
} as const satisfies Columns;
const USED = { ...USAGE, provisional: 'boolean' } as const satisfies Columns;

/**
 * State, story, usage, result and the end of the body's retention in one: a job has all of them or none. Where nobody
 * brings a usage row, the store writes one of what it knows, which the node's word may replace when it comes back.
 */
const statement = prepared(
  'finish-jobs',
  `with now as materialized (select ${NOW_MS} as ms),
   input as materialized (${unnested(COLUMNS)}),
   ${heldWith(
     `backend, outcome, code, message, input.state as end_state, digest, input.error_code, input.error_message, result, counted,
      j.request_id, j.key, j.model, j.operation, j.created_at`,
     'coalesce(j.started_at, now.ms - started_ago_ms)',
   )},
   story as (${tellStory()}),
   used as (
     insert into usage (${USAGE_COLUMNS}, provisional)
     select ${USAGE_COLUMNS}, provisional from (${unnested(USED, 1 + widthOf(COLUMNS))}) u
     where job in (select id from held where holds)
     on conflict do nothing),
   uncounted as (
     insert into usage (${USAGE_COLUMNS}, provisional)
     select id, request_id, key, model, operation, ${served('node')}, coalesce(error_code, end_state), 502,
       attempt, ${promptEstimate('started_at', 'held.id')}, 0, 0, true,
       greatest(0, coalesce(offered_at, now.ms) - created_at), null, greatest(0, now.ms - created_at), created_at,
       true
     from held, now
     where holds and not counted
     on conflict do nothing),
   bodies as (
     update job_bodies b set result = held.result, erase_at = now.ms + b.retention_ms
     from held, now
     where b.job = held.id and held.holds),
   moved as (
     update jobs j
     set state = held.end_state, error_code = held.error_code, error_message = held.error_message,
       started_at = held.started_at, finished_at = now.ms, deadline_at = null,
       accepted_attempt = j.attempt, result_digest = held.digest
     from held, now
     where j.id = held.id and held.holds)
   select id, ${RESULT_OUTCOME} as outcome from held`,
);

export function finishJobs(sql: Sql, batch: Finish[]): Promise<ResultOutcome[]> {
  return moveJobs(sql, statement, batch, (finishes) => [
    ...columnsOf(
      COLUMNS,
      finishes.map((finish) => ({ ...finish, counted: finish.usage !== null })),
    ),
    ...columnsOf(
      USED,
      finishes.flatMap(({ usage, provisional }) => (usage === null ? [] : [{ ...usage, provisional }])),
    ),
  ]);
}
