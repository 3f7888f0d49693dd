import type { NodeStateChange } from '@flotilla/core';
import { encode } from './json.ts';
import { prepared, type Sql } from './sql.ts';

/**
 * Only where the epoch still holds: a replica that lost the node cannot overwrite its successor. Revoked stays.
 * Rows are locked in order of id, so that replicas cannot wait for each other. What is written comes with the locked rows:
 * joined with them once more, ten thousand changes would be compared with each other, which nobody has statistics of.
 */
const statement = prepared(
  'save-node-states',
  `with change as materialized (
     select * from jsonb_to_recordset($1::jsonb)
       as r (id text, epoch bigint, state text, close_reason text, at bigint, last_seen_at bigint, health jsonb)),
   locked as materialized (
     select change.* from node_liveness l join change on change.id = l.node order by l.node for no key update of l),
   raised as (update configuration set fleet = fleet + 1 where (select count(*) from locked) > 0 returning fleet)
   update node_liveness l
   set state = change.state, close_reason = change.close_reason, changed_at = change.at,
     last_seen_at = greatest(l.last_seen_at, change.last_seen_at), health = coalesce(change.health, l.health),
     moved = raised.fleet
   from locked change, raised
   where l.node = change.id and l.epoch = change.epoch and l.state <> 'revoked'`,
);

export async function saveNodeStates(sql: Sql, changes: NodeStateChange[]): Promise<void> {
  if (changes.length > 0) await sql.query(statement, [encode(lastOfEach(changes))]);
}

/** A batch may hold several changes of one node: the last one of its highest epoch counts. */
export function lastOfEach<Change extends { id: string; epoch: number }>(changes: Change[]): Change[] {
  const last = new Map<string, Change>();
  for (const change of changes) {
    if (change.epoch >= (last.get(change.id)?.epoch ?? 0)) last.set(change.id, change);
  }
  return [...last.values()];
}
