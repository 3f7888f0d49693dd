import type { DescriptorChange } from '@flotilla/core';
import { encode } from './json.ts';
import { lastOfEach } from './save-node-states.ts';
import { prepared, type Sql } from './sql.ts';

/**
 * Only where the epoch still holds, which the lock keeps true until the end. A list of models that a backend told
 * as another kind or version goes with the old descriptor (core's `catalogueOutdated`, where rows are).
 */
const statement = prepared(
  'save-descriptors',
  `with change as materialized (
     select * from jsonb_to_recordset($1::jsonb)
       as r (id text, epoch bigint, descriptor jsonb, descriptor_hash text)),
   held as materialized (
     select l.node, l.epoch from node_liveness l join change on change.id = l.node order by l.node
     for no key update of l),
   raised as (update configuration set fleet = fleet + 1 where (select count(*) from held) > 0 returning fleet),
   told as (
     update node_liveness l set moved = raised.fleet
     from change join held on held.node = change.id and held.epoch = change.epoch, raised
     where l.node = change.id),
   dropped as (
     delete from model_catalogues c
     using change
       join held on held.node = change.id and held.epoch = change.epoch,
       lateral jsonb_to_recordset(change.descriptor->'backends') as b (id text, kind text, version text)
     where c.node = change.id and c.backend = b.id
       and ((b.kind <> 'unknown' and b.kind <> c.kind) or b.version <> c.version))
   update nodes n set descriptor = change.descriptor, descriptor_hash = change.descriptor_hash
   from change join held on held.node = change.id and held.epoch = change.epoch
   where n.id = change.id`,
);

export async function saveDescriptors(sql: Sql, changes: DescriptorChange[]): Promise<void> {
  if (changes.length > 0) await sql.query(statement, [encode(lastOfEach(changes))]);
}
