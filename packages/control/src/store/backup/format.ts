import { z } from 'zod';

/**
 * A backup: lines of JSON, of which the first is the head and the last one the end, compressed with gzip.
 *
 *     {"flotilla_backup":1,"schema_version":1,"product_version":"0.1.0","engine":"embedded","created_at":"…","tables":[…]}
 *     {"table":"usage","row":{"job":"job_…", …}}            any number, table by table
 *     {"end":true,"tables":{"usage":{"rows":1,"digest":"…"}, …},"sha256":"…"}
 *
 * Rows are as the database itself writes them as JSON, so both engines read what either has written, to the last digit.
 * `sha256` is that of all bytes before the end's line. A table's digest does not depend on the order of its rows.
 */
export const BACKUP_FORMAT = 1;

export const backupHead = z.object({
  flotilla_backup: z.int().min(1),
  schema_version: z.int().min(1),
  product_version: z.string().max(100),
  engine: z.enum(['embedded', 'postgres']),
  created_at: z.iso.datetime(),
  tables: z.array(z.string().regex(/^\w+$/)).min(1).max(1000),
});
export type BackupHead = z.output<typeof backupHead>;

const tally = z.object({ rows: z.int().min(0), digest: z.string().regex(/^[0-9a-f]{16}$/) });
export const backupEnd = z.object({
  end: z.literal(true),
  tables: z.record(z.string(), tally),
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
});
export type BackupEnd = z.output<typeof backupEnd>;
/** How many rows a table has, and what is in them. */
export type Tally = z.output<typeof tally>;
export type Tallies = Record<string, Tally>;

export function rowPrefix(table: string): string {
  return `{"table":"${table}","row":`;
}

/** What a backup is not fit for; nothing was changed. Meant for the person at the terminal. */
export class BackupError extends Error {
  override readonly name = 'BackupError';
}
