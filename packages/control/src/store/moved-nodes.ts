import type { KnownDescriptor, MovedNode, MovedNodes } from '@flotilla/core';
import { readDescriptor } from '@flotilla/protocol';
import { loadDescriptors } from './nodes.ts';
import { prepared, type Sql } from './sql.ts';

/** Nothing but the number where nothing has moved, which is nearly always. */
const statement = prepared(
  'moved-nodes',
  `select c.fleet, l.node as id, l.epoch, l.state, l.replica, l.close_reason, l.health, n.name, n.descriptor_hash
   from configuration c
     left join node_liveness l on c.fleet > $1 and l.moved > $1
     left join nodes n on n.id = l.node`,
);

type Row = { fleet: number } & ({ id: null } | (Omit<MovedNode, 'descriptor'> & { name: string }));

export async function movedNodes(sql: Sql, since: number, known: KnownDescriptor): Promise<MovedNodes> {
  const rows = await sql.query<Row>(statement, [since]);
  const moved = rows.flatMap((row) => (row.id === null ? [] : [row]));
  const missing = moved.filter(
    ({ id, descriptor_hash: hash }) => hash !== null && known(id, hash) === undefined,
  );
  const stored =
    missing.length === 0
      ? new Map<string, unknown>()
      : await loadDescriptors(
          sql,
          missing.map(({ id }) => id),
        );
  const nodes = moved.map(({ fleet: _fleet, name, ...row }) => {
    const input = stored.get(row.id);
    return { ...row, descriptor: input === undefined ? null : readDescriptor(input, name).descriptor };
  });
  return { fleet: rows[0]?.fleet ?? since, nodes };
}
