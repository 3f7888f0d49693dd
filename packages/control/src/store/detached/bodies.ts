import type { JobBodies, ResultMeasure } from '@flotilla/core';
import { NOW_MS, prepared, type Sql } from '../sql.ts';

const load = prepared('load-bodies', 'select request, result, erase_at from job_bodies where job = $1');
const measure = prepared(
  'measure-result',
  'select octet_length(result) as result_bytes, erase_at from job_bodies where job = $1',
);
const loadOne = prepared('load-result', 'select result from job_bodies where job = $1');
const erase = prepared(
  'erase-bodies',
  `with over as materialized (
     select job from job_bodies where erase_at is not null and erase_at <= (select ${NOW_MS})
     order by erase_at limit $1 for update skip locked),
   gone as (delete from job_bodies where job in (select job from over))
   select count(*) as count from over`,
);

export async function loadBodies(sql: Sql, id: string): Promise<JobBodies | undefined> {
  const [row] = await sql.query<JobBodies>(load, [id]);
  return row;
}

export async function measureResult(sql: Sql, id: string): Promise<ResultMeasure | undefined> {
  const [row] = await sql.query<ResultMeasure>(measure, [id]);
  return row;
}

export async function loadResult(sql: Sql, id: string): Promise<string | null> {
  const [row] = await sql.query<Pick<JobBodies, 'result'>>(loadOne, [id]);
  return row?.result ?? null;
}

export async function deleteBodies(sql: Sql, id: string): Promise<boolean> {
  return (await sql.query('delete from job_bodies where job = $1 returning job', [id])).length > 0;
}

export async function eraseBodies(sql: Sql, limit: number): Promise<number> {
  const [row] = await sql.query<{ count: number }>(erase, [limit]);
  return row?.count ?? 0;
}
