import { openEngine } from '../../packages/control/src/store/open.ts';
import { prepared } from '../../packages/control/src/store/sql.ts';

export interface Row {
  id: string;
  model: string;
  status: number;
  at: number;
}

interface Waiting {
  row: Row;
  resolve: () => void;
  reject: (error: unknown) => void;
}

const TABLE = 'create table if not exists floor (id uuid primary key, model text, status int, at bigint)';
const INSERT = prepared(
  'record-floor',
  'insert into floor select * from json_to_recordset($1::json) as rows (id uuid, model text, status int, at bigint)',
);
const QUIET = { debug() {}, info() {}, warn() {}, error() {} };

/**
 * One row a request, in the cheapest way that still awaits it: what came while a write was under way goes with the next, in
 * one statement, through the engine that the product uses, with its settings. `place`: a postgres:// address, a folder for
 * PGlite, or nothing.
 */
export async function openRecorder(place: string | undefined): Promise<((row: Row) => Promise<void>) | null> {
  if (place === undefined || place === '') return null;
  const options = place.startsWith('postgres') ? { database_url: place } : { data_dir: place };
  const store = await openEngine(options, QUIET);
  await store.query(TABLE);
  let waiting: Waiting[] = [];
  let writing = false;

  return (row) =>
    new Promise((resolve, reject) => {
      waiting.push({ row, resolve, reject });
      if (!writing) void flush();
    });

  async function flush(): Promise<void> {
    writing = true;
    while (waiting.length > 0) {
      const batch = waiting;
      waiting = [];
      try {
        await store.query(INSERT, [JSON.stringify(batch.map(({ row }) => row))]);
        for (const { resolve } of batch) resolve();
      } catch (error) {
        for (const { reject } of batch) reject(error);
      }
    }
    writing = false;
  }
}
