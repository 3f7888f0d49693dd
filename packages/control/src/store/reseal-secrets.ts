import { noteInAct } from './audit.ts';
import { administer, holdConfiguration } from './config-version.ts';
import { encode } from './json.ts';
import type { Sql } from './sql.ts';

/** Puts another key's seal on everything: the canary and the keys of providers, all of them or none. */
export async function resealSecrets(
  sql: Sql,
  canary: string,
  reseal: (sealed: string, bound_to: string) => string,
): Promise<number> {
  return sql.transaction(async (tx) => {
    await holdConfiguration(tx);
    const kept = await tx.query<{ id: string; key_sealed: string }>(
      'select id, key_sealed from providers where key_sealed is not null order by id',
    );
    const resealed = kept.map(({ id, key_sealed }) => ({ id, key_sealed: reseal(key_sealed, id) }));
    noteInAct({ secrets: resealed.length });
    await tx.query(
      `update providers set key_sealed = r.key_sealed
       from jsonb_to_recordset($1::jsonb) as r (id text, key_sealed text) where providers.id = r.id`,
      [encode(resealed)],
    );
    await administer(tx, 'update secret_canary set sealed = $1 returning one', [canary]);
    return resealed.length;
  });
}
