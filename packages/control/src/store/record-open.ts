import type { JobRecord } from '@flotilla/core';
import { JOB_COLUMNS, JOB_TYPES } from './job-columns.ts';
import { encode } from './json.ts';
import { prepared, type Sql } from './sql.ts';

/** A job that its settlement has overtaken stays settled. In order of id: batches cannot wait for each other. */
const statement = prepared(
  'record-open',
  `insert into jobs (${JOB_COLUMNS})
   select ${JOB_COLUMNS} from jsonb_to_recordset($1::jsonb) as r (${JOB_TYPES})
   order by id
   on conflict (id) do nothing`,
);

export async function recordOpen(sql: Sql, batch: JobRecord[]): Promise<void> {
  if (batch.length > 0) await sql.query(statement, [encode(batch)]);
}
