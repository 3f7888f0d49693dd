import { encode } from './json.ts';
import { prepared, type Sql } from './sql.ts';

/** Locks in order of id first: two replicas that flush the same nodes cannot wait for each other. */
const statement = prepared(
  'flush-seen',
  `with seen as materialized (
     select id, max(at) as at from jsonb_to_recordset($1::jsonb) as r (id text, at bigint) group by id),
   locked as materialized (
     select l.node from node_liveness l join seen on seen.id = l.node order by l.node for no key update of l)
   update node_liveness l set last_seen_at = seen.at
   from seen join locked on locked.node = seen.id
   where l.node = seen.id and (l.last_seen_at is null or l.last_seen_at < seen.at)`,
);

export async function flushSeen(sql: Sql, seen: { id: string; at: number }[]): Promise<void> {
  if (seen.length > 0) await sql.query(statement, [encode(seen)]);
}
