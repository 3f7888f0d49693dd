import { encode } from './json.ts';
import { prepared, type Sql } from './sql.ts';

/** Locks in order of id first: two replicas that touch the same keys cannot wait for each other. */
const statement = prepared(
  'touch-keys',
  `with used as materialized (
     select id, max(at) as at from jsonb_to_recordset($1::jsonb) as r (id text, at bigint) group by id),
   locked as materialized (
     select k.id from api_keys k join used using (id) order by k.id for no key update of k)
   update api_keys k set last_used_at = used.at
   from used join locked using (id)
   where k.id = used.id and (k.last_used_at is null or k.last_used_at < used.at)`,
);

export async function touchKeys(sql: Sql, used: { id: string; at: number }[]): Promise<void> {
  if (used.length > 0) await sql.query(statement, [encode(used)]);
}
