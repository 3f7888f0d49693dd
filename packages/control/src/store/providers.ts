import type { ProviderPatch, ProviderRecord, ProviderWrite } from '@flotilla/core';
import { administer, holdConfiguration } from './config-version.ts';
import { encode } from './json.ts';
import { assign } from './keys.ts';
import { prepared, type Sql } from './sql.ts';

const COLUMNS = `id, name, base_url, key_sealed, key_header, labels, concurrency, enabled, probe,
  connect_timeout_ms, first_byte_timeout_ms, idle_timeout_ms, created_at`;

const load = prepared('load-providers', `select ${COLUMNS} from providers order by id`);

export function loadProviders(sql: Sql): Promise<ProviderRecord[]> {
  return sql.query<ProviderRecord>(load);
}

export async function insertProvider(sql: Sql, provider: ProviderRecord): Promise<ProviderWrite> {
  return sql.transaction(async (tx): Promise<ProviderWrite> => {
    await holdConfiguration(tx);
    const [made] = await administer<ProviderRecord>(
      tx,
      `insert into providers (${COLUMNS})
     select ${COLUMNS} from jsonb_to_record($1::jsonb) as r (
       id text, name text, base_url text, key_sealed text, key_header text, labels jsonb, concurrency bigint,
       enabled boolean, probe text, connect_timeout_ms bigint, first_byte_timeout_ms bigint,
       idle_timeout_ms bigint, created_at bigint)
     on conflict (name) do nothing
     returning ${COLUMNS}`,
      [encode(provider)],
    );
    return made === undefined ? { refused: 'name_taken' } : { provider: made };
  });
}

/** What a patch may name, and how its value becomes a parameter. */
const PATCHABLE: Record<keyof ProviderPatch, 'plain' | 'jsonb'> = {
  name: 'plain',
  base_url: 'plain',
  key_sealed: 'plain',
  key_header: 'plain',
  labels: 'jsonb',
  concurrency: 'plain',
  enabled: 'plain',
  probe: 'plain',
  connect_timeout_ms: 'plain',
  first_byte_timeout_ms: 'plain',
  idle_timeout_ms: 'plain',
};

export async function updateProvider(sql: Sql, id: string, patch: ProviderPatch): Promise<ProviderWrite> {
  const { assignments, params } = assign(PATCHABLE, patch);
  return sql.transaction(async (tx): Promise<ProviderWrite> => {
    await holdConfiguration(tx);
    if (patch.name !== undefined) {
      const taken = await tx.query('select id from providers where name = $1 and id <> $2', [patch.name, id]);
      if (taken.length > 0) return { refused: 'name_taken' };
    }
    const change = `update providers set ${assignments} where id = $1 returning ${COLUMNS}`;
    const [row] = await administer<ProviderRecord>(tx, change, [id, ...params]);
    return row === undefined ? { refused: 'unknown' } : { provider: row };
  });
}

export async function deleteProvider(
  sql: Sql,
  id: string,
): Promise<'deleted' | 'unknown' | { used_by: string[] }> {
  return sql.transaction(async (tx) => {
    await holdConfiguration(tx);
    const users = await tx.query<{ name: string }>(
      `select name from routes where targets @> jsonb_build_array(jsonb_build_object('provider', $1::text))
       order by name`,
      [id],
    );
    if (users.length > 0) return { used_by: users.map(({ name }) => name) };
    const gone = await administer(tx, 'delete from providers where id = $1 returning id', [id]);
    return gone.length > 0 ? 'deleted' : 'unknown';
  });
}
