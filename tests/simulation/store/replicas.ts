import type { ReplicaRow } from '@flotilla/core';
import { leaveLimits } from './draw-limits.ts';
import { notUnique } from './failure.ts';
import { bytewise, type Tables } from './tables.ts';

export function enterReplica(tables: Tables, id: string, bus: boolean): void {
  if (tables.replicas.has(id)) throw notUnique('replicas', id);
  tables.replicas.set(id, { id, bumps: 1, bus, named: false });
  if (tables.replicas.size === 1) tables.allowances.clear();
}

export function bumpReplica(tables: Tables, id: string): boolean {
  const replica = tables.replicas.get(id);
  if (replica === undefined) return false;
  tables.replicas.set(id, { ...replica, bumps: replica.bumps + 1 });
  return true;
}

export function endReplica(tables: Tables, id: string): void {
  const is_alone = tables.replicas.get(id)?.bus === false;
  tables.replicas.delete(id);
  if (is_alone)
    for (const [name, row] of tables.allowances) {
      if (row.kind === 'budget') tables.allowances.set(name, { ...row, stale: true });
    }
  leaveLimits(tables, id);
}

export function listReplicas(tables: Tables): ReplicaRow[] {
  return [...tables.replicas.values()].sort((a, b) => bytewise(a.id, b.id)).map((row) => ({ ...row }));
}
