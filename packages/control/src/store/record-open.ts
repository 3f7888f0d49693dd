import type { JobRecord } from '@flotilla/core';
import { columnsOf, unnested } from './columns.ts';
import { JOB, JOB_COLUMNS } from './job-columns.ts';
import { prepared, type Sql } from './sql.ts';

/** A job that its settlement has overtaken stays settled. In order of id: batches cannot wait for each other. */
const statement = prepared(
  'record-open',
  `insert into jobs (${JOB_COLUMNS})
   select ${JOB_COLUMNS} from (${unnested(JOB)}) r
   order by id
   on conflict (id) do nothing`,
);

export async function recordOpen(sql: Sql, batch: JobRecord[]): Promise<void> {
  if (batch.length > 0) await sql.query(statement, columnsOf(JOB, batch));
}
