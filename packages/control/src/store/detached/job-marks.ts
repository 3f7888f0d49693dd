import type { JobMark } from '@flotilla/core';
import { encode } from '../json.ts';
import { prepared, type Sql } from '../sql.ts';

/** Each transition of a detached job moves one of these. An attached one is its replica's, and its row is behind. */
const statement = prepared(
  'job-marks',
  `select j.id, concat_ws(' ', j.state, j.attempt, coalesce(j.epoch, 0), coalesce(j.started_at, 0),
     coalesce(j.finished_at, 0), coalesce(j.deadline_at, 0)) as mark
   from jsonb_array_elements_text($1::jsonb) as asked (id) join jobs j on j.id = asked.id
   where not j.attached`,
);

export async function jobMarks(sql: Sql, ids: readonly string[]): Promise<JobMark[]> {
  return sql.query<JobMark>(statement, [encode(ids)]);
}
