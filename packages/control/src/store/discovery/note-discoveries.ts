import type { DiscoveryNote } from '@flotilla/core';
import { DISCOVERY_STAGES } from '@flotilla/protocol';
import { encode } from '../json.ts';
import { prepared, type Sql } from '../sql.ts';
import { IS_OPEN } from './row.ts';

const RANKS = `array[${DISCOVERY_STAGES.map((stage) => `'${stage}'`).join(', ')}]`;

/** Locked in order of id, so that replicas cannot wait for each other. */
const statement = prepared(
  'note-discoveries',
  `with note as materialized (
     select * from jsonb_to_recordset($1::jsonb) as r (id text, node text, stage text, waiting_for text)),
   locked as materialized (
     select d.id from model_discoveries d join note on note.id = d.id and note.node = d.node
     where d.${IS_OPEN} order by d.id for no key update of d)
   update model_discoveries d set state = 'running', stage = note.stage, waiting_for = note.waiting_for
   from note join locked on locked.id = note.id
   where d.id = note.id and array_position(${RANKS}, d.stage) <= array_position(${RANKS}, note.stage)`,
);

export async function noteDiscoveries(sql: Sql, notes: DiscoveryNote[]): Promise<void> {
  if (notes.length > 0) await sql.query(statement, [encode(notes)]);
}
