import { NOW_MS, prepared, type Sql } from './sql.ts';

/** The times are the store's, for people; watchers compare the counts only. */
const enter = prepared(
  'enter-replica',
  `insert into replicas (id, bumps, started_at, bumped_at) values ($1, 1, ${NOW_MS}, ${NOW_MS})`,
);
/** Makes no row: one that was cleared away while its replica slept must not come back beside its successor's. */
const bump = prepared(
  'bump-replica',
  `update replicas set bumps = bumps + 1, bumped_at = ${NOW_MS} where id = $1 returning id`,
);
const list = prepared('list-replicas', 'select id, bumps from replicas order by id');

export async function enterReplica(sql: Sql, id: string): Promise<void> {
  await sql.query(enter, [id]);
}

export async function bumpReplica(sql: Sql, id: string): Promise<boolean> {
  return (await sql.query(bump, [id])).length > 0;
}

export async function endReplica(sql: Sql, id: string): Promise<void> {
  await sql.query('delete from replicas where id = $1', [id]);
}

export function listReplicas(sql: Sql): Promise<{ id: string; bumps: number }[]> {
  return sql.query(list);
}
