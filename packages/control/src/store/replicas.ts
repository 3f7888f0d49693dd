import { NOW_MS, prepared, type Sql } from './sql.ts';

/** The times are the store's, for people; watchers compare the counts only. */
const bump = prepared(
  'bump-replica',
  `insert into replicas (id, bumps, started_at, bumped_at)
   values ($1, 1, ${NOW_MS}, ${NOW_MS})
   on conflict (id) do update set bumps = replicas.bumps + 1, bumped_at = excluded.bumped_at`,
);
const list = prepared('list-replicas', 'select id, bumps from replicas order by id');

export async function bumpReplica(sql: Sql, id: string): Promise<void> {
  await sql.query(bump, [id]);
}

export async function endReplica(sql: Sql, id: string): Promise<void> {
  await sql.query('delete from replicas where id = $1', [id]);
}

export function listReplicas(sql: Sql): Promise<{ id: string; bumps: number }[]> {
  return sql.query(list);
}
