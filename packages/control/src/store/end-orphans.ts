import { prepared, type Sql } from './sql.ts';

/** Marked as orphaned: if the replica lives after all, its own settlement replaces this guess. */
const statement = prepared(
  'end-orphans',
  `with ended as (
     update jobs
     set state = 'failed', error_code = 'unavailable',
         error_message = 'The control plane replica that held this request ended before the request did.',
         finished_at = $2, orphaned = true
     where replica = $1 and attached and finished_at is null
     returning id)
   select count(*) as count from ended`,
);

export async function endOrphans(sql: Sql, replica: string, at: number): Promise<number> {
  const [row] = await sql.query<{ count: number }>(statement, [replica, at]);
  return row?.count ?? 0;
}
