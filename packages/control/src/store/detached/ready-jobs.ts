import { NOW_MS, prepared, type Sql } from '../sql.ts';

const statement = prepared(
  'ready-jobs',
  `with over as materialized (
     select id from jobs
     where state = 'queued' and not_before is not null and not_before <= (select ${NOW_MS})
     order by not_before limit $1 for no key update skip locked),
   ready as (update jobs j set not_before = null from over where j.id = over.id returning j.lane)
   select distinct lane from ready`,
);

export async function readyJobs(sql: Sql, limit: number): Promise<string[]> {
  return (await sql.query<{ lane: string }>(statement, [limit])).map(({ lane }) => lane);
}
