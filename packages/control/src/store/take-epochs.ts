import { encode } from './json.ts';
import { prepared, type Sql } from './sql.ts';

/**
 * A revoked node gets no epoch: a replica whose snapshot is half a second old cannot let it in.
 * Rows are locked in order of id, so that replicas that take over the same nodes cannot wait for each other.
 */
const statement = prepared(
  'take-epochs',
  `with wanted as materialized (
     select distinct id from jsonb_array_elements_text($1::jsonb) as r (id)),
   locked as materialized (
     select l.node from node_liveness l join wanted on wanted.id = l.node
     where l.state <> 'revoked' order by l.node for no key update of l),
   raised as (update configuration set fleet = fleet + 1 where (select count(*) from locked) > 0 returning fleet)
   update node_liveness l set epoch = l.epoch + 1, replica = $2, moved = raised.fleet
   from locked, raised where l.node = locked.node
   returning l.node, l.epoch`,
);

export async function takeEpochs(sql: Sql, replica: string, nodes: string[]): Promise<Map<string, number>> {
  if (nodes.length === 0) return new Map();
  const rows = await sql.query<{ node: string; epoch: number }>(statement, [encode(nodes), replica]);
  return new Map(rows.map(({ node, epoch }) => [node, epoch]));
}
