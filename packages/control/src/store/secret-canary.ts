import type { Sql } from './sql.ts';

/** Of two replicas that start for the first time at once, both get the canary of one. */
export async function secretCanary(sql: Sql, sealed: string | null): Promise<string | null> {
  if (sealed !== null) {
    await sql.query('insert into secret_canary (sealed) values ($1) on conflict do nothing', [sealed]);
  }
  const [row] = await sql.query<{ sealed: string }>('select sealed from secret_canary');
  return row?.sealed ?? null;
}
