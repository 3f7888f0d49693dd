import type {
  CredentialRecord,
  KnownDescriptor,
  LoadedNodes,
  Log,
  NodePatch,
  NodeRecord,
} from '@flotilla/core';
import { type NodeState, readDescriptor } from '@flotilla/protocol';
import { z } from 'zod';
import { administer } from './config-version.ts';
import { assign } from './keys.ts';
import { NOW_MS, prepared, type Sql } from './sql.ts';

/** One row a node, its credentials gathered in it; `n` is nodes or what a statement has just returned of it. */
const select = (from: string, descriptor = 'n.descriptor') => `
  select n.id, n.name, n.labels, n.allowed_models, l.state, n.cordoned, n.drain_deadline_at, l.epoch,
    ${descriptor} as descriptor, n.descriptor_hash, l.close_reason, n.created_at, l.last_seen_at, n.revoked_at,
    coalesce((
      select jsonb_agg(jsonb_build_object(
        'id', c.id, 'hash', c.hash, 'created_at', c.created_at, 'expires_at', c.expires_at) order by c.id)
      from node_credentials c
      where c.node = n.id and (c.expires_at is null or c.expires_at > ${NOW_MS} - 86400000)), '[]') as credentials
  from ${from} n join node_liveness l on l.node = n.id`;

const load = prepared('load-nodes', `${select('nodes', 'null::jsonb')} order by n.id`);
const descriptors = prepared(
  'load-descriptors',
  'select id, descriptor from nodes where id in (select jsonb_array_elements_text($1::jsonb)) and descriptor is not null',
);
const find = prepared('find-node', `${select('nodes')} where n.id = $1`);

interface NodeRow extends Omit<NodeRecord, 'descriptor' | 'labels' | 'allowed_models'> {
  labels: unknown;
  allowed_models: unknown;
  descriptor: unknown;
  state: NodeState;
  credentials: CredentialRecord[];
}

interface DescriptorRow {
  id: string;
  descriptor: unknown;
}

/** Each change of the configuration asks for all nodes; their descriptors, most of the bytes, travel once. */
export async function loadNodes(
  sql: Sql,
  log: Log,
  known: KnownDescriptor = () => undefined,
): Promise<LoadedNodes> {
  const rows = await sql.query<NodeRow>(load);
  const had = new Map(rows.map((row) => [row.id, known(row.id, row.descriptor_hash ?? '')]));
  const missing = rows.filter((row) => had.get(row.id) === undefined).map((row) => row.id);
  const read = missing.length === 0 ? new Map<string, unknown>() : await loadDescriptors(sql, missing);
  const nodes: NodeRecord[] = [];
  const unreadable: string[] = [];
  for (const row of rows) {
    const node = readNode({ ...row, descriptor: read.get(row.id) ?? null }, log);
    const descriptor = had.get(row.id);
    if (node === undefined) unreadable.push(row.id);
    else nodes.push(descriptor === undefined ? node : { ...node, descriptor });
  }
  return { nodes, unreadable };
}

export async function loadDescriptors(sql: Sql, ids: string[]): Promise<Map<string, unknown>> {
  const rows = await sql.query<DescriptorRow>(descriptors, [JSON.stringify(ids)]);
  return new Map(rows.map(({ id, descriptor }) => [id, descriptor]));
}

async function findNode(sql: Sql, id: string, log: Log): Promise<NodeRecord | undefined> {
  const [row] = await sql.query<NodeRow>(find, [id]);
  return row && readNode(row, log);
}

/** Made once: zod compiles a schema where it is first used, and there are ten thousand nodes to read. */
const rightsSchema = z.object({
  labels: z.record(z.string(), z.string()),
  allowed_models: z.array(z.string()),
});

/**
 * One row as the roster sees it. What is unreadable in it never costs the others: without its descriptor a node stays,
 * offers nothing and, having no hash, is asked for it again; without rights that can be read it is named, and keeps those it had where it is known.
 */
function readNode(row: NodeRow, log: Log): NodeRecord | undefined {
  const rights = rightsSchema.safeParse(row);
  if (!rights.success) {
    log.error(
      { node: row.id },
      'The labels or allowed models of a node are unreadable in the store; what was known of it stands.',
    );
    return undefined;
  }
  const node: NodeRecord = { ...row, ...rights.data, descriptor: null };
  if (row.descriptor === null) return node;
  const { descriptor, warnings } = readDescriptor(row.descriptor, row.name);
  if (warnings.length === 0) return { ...node, descriptor };
  log.warn(
    { node: row.id, warnings },
    'A stored descriptor is partly unreadable; the node will be asked for it.',
  );
  const readable = typeof row.descriptor === 'object' && !Array.isArray(row.descriptor);
  return { ...node, descriptor: readable ? descriptor : null, descriptor_hash: null };
}

const PATCHABLE: Record<keyof NodePatch, 'plain' | 'jsonb'> = {
  labels: 'jsonb',
  allowed_models: 'jsonb',
  cordoned: 'plain',
  drain_deadline_at: 'plain',
};

export async function updateNode(
  sql: Sql,
  id: string,
  patch: NodePatch,
  log: Log,
): Promise<NodeRecord | undefined> {
  const { assignments, params } = assign(PATCHABLE, patch);
  return sql.transaction(async (tx) => {
    await administer(tx, `update nodes set ${assignments} where id = $1 returning id`, [id, ...params]);
    return findNode(tx, id, log);
  });
}

export async function rotateCredential(
  sql: Sql,
  node: string,
  credential: CredentialRecord,
  old_expires_at: number,
): Promise<boolean> {
  return sql.transaction(async (tx) => {
    await tx.query(
      'update node_credentials set expires_at = least(coalesce(expires_at, $2), $2) where node = $1',
      [node, old_expires_at],
    );
    const added = await administer(
      tx,
      `insert into node_credentials (id, node, hash, created_at, expires_at)
       select $2, id, $3, $4, $5 from nodes where id = $1 and revoked_at is null
       returning id`,
      [node, credential.id, credential.hash, credential.created_at, credential.expires_at],
    );
    return added.length > 0;
  });
}

/** The credentials stay, so that the daemon is told `revoked` and stops for good, instead of trying again. */
export async function revokeNode(
  sql: Sql,
  id: string,
  at: number,
  log: Log,
): Promise<NodeRecord | undefined> {
  return sql.transaction(async (tx) => {
    await tx.query(
      `update node_liveness set state = 'revoked', changed_at = $2 where node = $1 and state <> 'revoked'`,
      [id, at],
    );
    const change = 'update nodes set revoked_at = coalesce(revoked_at, $2) where id = $1 returning id';
    await administer(tx, change, [id, at]);
    return findNode(tx, id, log);
  });
}

export async function deleteNode(sql: Sql, id: string): Promise<boolean> {
  return sql.transaction(async (tx) => {
    await tx.query('delete from node_credentials where node = $1', [id]);
    await tx.query('delete from node_liveness where node = $1', [id]);
    await tx.query('delete from model_discoveries where node = $1', [id]);
    await tx.query('delete from model_catalogues where node = $1', [id]);
    return (await administer(tx, 'delete from nodes where id = $1 returning id', [id])).length > 0;
  });
}
