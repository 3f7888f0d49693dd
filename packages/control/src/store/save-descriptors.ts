import type { DescriptorChange } from '@flotilla/core';
import { encode } from './json.ts';
import { lastOfEach } from './save-node-states.ts';
import { prepared, type Sql } from './sql.ts';

/** Only where the epoch still holds, which the share lock keeps true until the end. */
const statement = prepared(
  'save-descriptors',
  `with change as materialized (
     select * from jsonb_to_recordset($1::jsonb)
       as r (id text, epoch bigint, descriptor jsonb, descriptor_hash text)),
   held as materialized (
     select l.node, l.epoch from node_liveness l join change on change.id = l.node order by l.node for share of l)
   update nodes n set descriptor = change.descriptor, descriptor_hash = change.descriptor_hash
   from change join held on held.node = change.id and held.epoch = change.epoch
   where n.id = change.id`,
);

export async function saveDescriptors(sql: Sql, changes: DescriptorChange[]): Promise<void> {
  if (changes.length > 0) await sql.query(statement, [encode(lastOfEach(changes))]);
}
