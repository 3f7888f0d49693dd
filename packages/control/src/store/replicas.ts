import type { ReplicaRow } from '@flotilla/core';
import { leaveLimits } from './draw-limits.ts';
import { NOW_MS, prepared, type Sql } from './sql.ts';

/** The times are the store's, for people; watchers compare the counts only. */
const enter = prepared(
  'enter-replica',
  `insert into replicas (id, bus, bumps, started_at, bumped_at) values ($1, $2, 1, ${NOW_MS}, ${NOW_MS})`,
);
/** Makes no row: one that was cleared away while its replica slept must not come back beside its successor's. */
const bump = prepared(
  'bump-replica',
  `update replicas set bumps = bumps + 1, bumped_at = ${NOW_MS} where id = $1 returning id`,
);
const list = prepared('list-replicas', 'select id, bumps, bus from replicas order by id');

export async function enterReplica(sql: Sql, id: string, bus: boolean): Promise<void> {
  await sql.transaction(async (tx) => {
    await tx.query(enter, [id, bus]);
    // What a replica alone spends it tells nobody; the next that has others beside it counts anew.
    await tx.query(
      'delete from allowances where not $2 or not exists (select from replicas where id <> $1)',
      [id, bus],
    );
  });
}

export async function bumpReplica(sql: Sql, id: string): Promise<boolean> {
  return (await sql.query(bump, [id])).length > 0;
}

export async function endReplica(sql: Sql, id: string): Promise<void> {
  await sql.transaction(async (tx) => {
    await tx.query('delete from replicas where id = $1', [id]);
    await leaveLimits(tx, id);
  });
}

export function listReplicas(sql: Sql): Promise<ReplicaRow[]> {
  return sql.query(list);
}
