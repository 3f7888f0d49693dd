import type { Sql } from '../sql.ts';
import { quoted } from './tables.ts';

/**
 * The rows of one table as JSON text, page by page, through a cursor of the transaction that `sql` is in. The database
 * writes the JSON: no number passes through one of JavaScript's.
 */
const PAGE_ROWS = 200;
/** What bounds a page where a single row may have 32 MiB. */
const PAGE_ROWS_OF: Readonly<Record<string, number>> = { job_bodies: 2 };

export async function* readTable(sql: Pick<Sql, 'query'>, table: string): AsyncGenerator<string[]> {
  const rows = PAGE_ROWS_OF[table] ?? PAGE_ROWS;
  await sql.query(
    `declare backup_rows no scroll cursor for select row_to_json(t)::text as row from ${quoted(table)} t`,
  );
  for (;;) {
    const page = await sql.query<{ row: string }>(`fetch ${rows} from backup_rows`);
    if (page.length > 0) yield page.map(({ row }) => row);
    if (page.length < rows) break;
  }
  await sql.query('close backup_rows');
}
