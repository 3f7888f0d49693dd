import type { KeyPatch, KeyRecord } from '@flotilla/core';
import { administer } from './config-version.ts';
import { encode } from './json.ts';
import { type Param, prepared, type Sql } from './sql.ts';

const COLUMNS = `id, name, hash, role, scopes, allowed_models, node_labels, requests_per_minute, concurrency,
  tokens_per_minute, token_budget, created_at, expires_at, last_used_at, revoked_at`;

const load = prepared('load-keys', `select ${COLUMNS} from api_keys order by id`);

export function loadKeys(sql: Sql): Promise<KeyRecord[]> {
  return sql.query<KeyRecord>(load);
}

export async function insertKey(sql: Sql, key: KeyRecord): Promise<void> {
  await administer(
    sql,
    `insert into api_keys (${COLUMNS})
     select ${COLUMNS} from jsonb_to_record($1::jsonb) as r (
       id text, name text, hash text, role text, scopes jsonb, allowed_models jsonb, node_labels jsonb,
       requests_per_minute bigint, concurrency bigint, tokens_per_minute bigint, token_budget jsonb,
       created_at bigint, expires_at bigint, last_used_at bigint, revoked_at bigint)
     returning id`,
    [encode(key)],
  );
}

/** What a patch may name, and how its value becomes a parameter. */
const PATCHABLE: Record<keyof KeyPatch, 'plain' | 'jsonb'> = {
  name: 'plain',
  scopes: 'jsonb',
  allowed_models: 'jsonb',
  node_labels: 'jsonb',
  requests_per_minute: 'plain',
  concurrency: 'plain',
  tokens_per_minute: 'plain',
  token_budget: 'jsonb',
  expires_at: 'plain',
};

export async function updateKey(sql: Sql, id: string, patch: KeyPatch): Promise<KeyRecord | undefined> {
  const { assignments, params } = assign(PATCHABLE, patch);
  const change = `update api_keys set ${assignments} where id = $1 returning ${COLUMNS}`;
  const [row] = await administer<KeyRecord>(sql, change, [id, ...params]);
  return row;
}

export async function revokeKey(sql: Sql, id: string, at: number): Promise<KeyRecord | undefined> {
  const change = `update api_keys set revoked_at = coalesce(revoked_at, $2) where id = $1 returning ${COLUMNS}`;
  const [row] = await administer<KeyRecord>(sql, change, [id, at]);
  return row;
}

/** `column = $2, …` for what the patch names; parameters start at $2. An empty patch assigns id to itself. */
export function assign<Patch extends object>(
  patchable: Record<keyof Patch, 'plain' | 'jsonb'>,
  patch: Patch,
): { assignments: string; params: Param[] } {
  const columns = (Object.keys(patchable) as (keyof Patch & string)[]).filter(
    (column) => patch[column] !== undefined,
  );
  const params = columns.map((column) =>
    patchable[column] === 'jsonb' ? encode(patch[column]) : (patch[column] as Param),
  );
  const assignments = columns.map(
    (column, index) => `${column} = $${index + 2}${patchable[column] === 'jsonb' ? '::jsonb' : ''}`,
  );
  return { assignments: assignments.join(', ') || 'id = id', params };
}
