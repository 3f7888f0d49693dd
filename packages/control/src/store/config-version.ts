import { type Param, prepared, type Sql } from './sql.ts';

const read = prepared('config-version', 'select version from configuration');

export async function configVersion(sql: Sql): Promise<number> {
  const [row] = await sql.query<{ version: number }>(read);
  if (row === undefined) throw new Error('The store has lost its configuration row: restore a backup.');
  return row.version;
}

/**
 * Runs one statement of administration and raises the configuration version with it, in the same statement and so in
 * the same transaction; only if the statement changed something. It must end in `returning`.
 */
export function administer<Row = Record<string, unknown>>(
  sql: Sql,
  change: string,
  params: readonly Param[],
): Promise<Row[]> {
  return sql.query<Row>(
    `with changed as (${change}),
          raised as (update configuration set version = version + 1 where exists (select from changed))
     select * from changed`,
    params,
  );
}
