import type { ReplicaRow } from '@flotilla/core';
import { leaveLimits } from './draw-limits.ts';
import { type Engine, NOW_MS, prepared, type Sql } from './sql.ts';

/** The times are the store's, for people; watchers compare the counts only. */
const enter = prepared(
  'enter-replica',
  `insert into replicas (id, bus, named, bumps, started_at, bumped_at) values ($1, $2, $3, 1, ${NOW_MS}, ${NOW_MS})`,
);
/** Makes no row: one that was cleared away while its replica slept must not come back beside its successor's. */
const bump = prepared(
  'bump-replica',
  `update replicas set bumps = bumps + 1, bumped_at = ${NOW_MS} where id = $1 returning id`,
);
const end = prepared('end-replica', 'delete from replicas where id = $1 returning bus');
const doubtBudgets = prepared(
  'doubt-budgets',
  `with locked as materialized (
     select key, kind from allowances where kind = 'budget' order by key, kind for no key update)
   update allowances a set stale = true from locked l where a.key = l.key and a.kind = l.kind`,
);
const list = prepared('list-replicas', 'select id, bumps, bus, named from replicas order by id');

export async function enterReplica(engine: Engine, id: string, bus: boolean): Promise<void> {
  const named = (await engine.openSessions())?.has(id) === true;
  await engine.transaction(async (tx) => {
    await tx.query(enter, [id, bus, named]);
    await tx.query('delete from allowances where not exists (select from replicas where id <> $1)', [id]);
  });
}

export async function bumpReplica(sql: Sql, id: string): Promise<boolean> {
  return (await sql.query(bump, [id])).length > 0;
}

export async function endReplica(sql: Sql, id: string): Promise<void> {
  await sql.transaction(async (tx) => {
    const [row] = await tx.query<{ bus: boolean }>(end, [id]);
    // What a replica alone has spent it has told nobody. Nor does one that is refused beside others, whose shares stand.
    if (row?.bus === false) await tx.query(doubtBudgets);
    await leaveLimits(tx, id);
  });
}

export function listReplicas(sql: Sql): Promise<ReplicaRow[]> {
  return sql.query(list);
}
