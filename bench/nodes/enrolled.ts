import { createHash } from 'node:crypto';
import { makeId } from '@flotilla/protocol';
import type pg from 'pg';

/** Nodes that are put into the database at once: to enrol ten thousand, one by one, is not what is measured. */
export function nameOf(n: number): string {
  return `node-${n}`;
}

export function credentialOf(n: number): string {
  return `fln_${createHash('sha256').update(`bench ${n}`).digest('base64url')}`;
}

/** As an enrolment writes them; the version says to every control plane that there are new ones. @returns the last one's id */
export async function enrolAll(database: pg.Client, nodes: number): Promise<string> {
  const now = Date.now();
  const rows = Array.from({ length: nodes }, (_, n) => ({
    id: makeId('node', now, idBytes(n)),
    credential: makeId('credential', now, idBytes(n)),
    name: nameOf(n),
    hash: createHash('sha256').update(credentialOf(n)).digest('hex'),
  }));
  const input = `with input as materialized (select * from jsonb_to_recordset($1::jsonb)
    as r (id text, credential text, name text, hash text))`;
  await database.query('begin');
  for (const insert of [
    `insert into nodes (id, name, labels, allowed_models, created_at) select id, name, '{}', '[]', $2 from input`,
    `insert into node_liveness (node, state, changed_at) select id, 'pending', $2 from input`,
    `insert into node_credentials (id, node, hash, created_at) select credential, id, hash, $2 from input`,
  ]) {
    await database.query(`${input} ${insert}`, [JSON.stringify(rows), now]);
  }
  await database.query('update configuration set version = version + 1');
  await database.query('commit');
  await database.query('analyze');
  return rows.at(-1)!.id;
}

function idBytes(n: number): Uint8Array {
  return createHash('sha256').update(`id ${n}`).digest().subarray(0, 10);
}
