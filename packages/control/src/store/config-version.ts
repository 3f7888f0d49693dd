import { actPart } from './audit.ts';
import { type Param, prepared, type Sql } from './sql.ts';

const read = prepared('config-version', 'select version from configuration');
const name = prepared('installation', 'select installation from configuration');

export async function configVersion(sql: Sql): Promise<number> {
  const [row] = await sql.query<{ version: number }>(read);
  if (row === undefined) throw new Error('The store has lost its configuration row: restore a backup.');
  return row.version;
}

export async function installation(sql: Sql): Promise<string> {
  const [row] = await sql.query<{ installation: string }>(name);
  if (row === undefined) throw new Error('The store has lost its configuration row: restore a backup.');
  return row.installation;
}

/** Until its transaction ends nobody else administers: what it then reads of the configuration stays so. */
export async function holdConfiguration(tx: Sql): Promise<void> {
  await tx.query('select version from configuration for update');
}

/**
 * Runs one statement of administration and raises the configuration version with it, in the same statement and so in
 * the same transaction; only if the statement changed something. The act that it belongs to is recorded with it. It must
 * end in `returning`, with the `id` of what is new.
 */
export async function administer<Row = Record<string, unknown>>(
  sql: Sql,
  change: string,
  params: readonly Param[],
): Promise<Row[]> {
  const act = actPart('changed', params.length + 1);
  const rows = await sql.query<Row>(
    `with changed as (${change}),
          raised as (update configuration set version = version + 1 where exists (select from changed))
          ${act.text}
     select * from changed`,
    [...params, ...act.params],
  );
  act.done(rows.length);
  return rows;
}
