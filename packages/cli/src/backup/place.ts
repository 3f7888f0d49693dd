import { resolve } from 'node:path';
import type { StoreOptions } from '@flotilla/control';
import { dataDir } from '../data-dir.ts';
import { UsageError } from '../failure.ts';

export interface PlaceFlags {
  dataDir?: string;
  databaseUrl?: string;
}

/** Where a store lies: what a flag says, else what a control plane with this environment would use. */
export function placeOf({ dataDir: directory, databaseUrl }: PlaceFlags): StoreOptions {
  if (directory !== undefined && databaseUrl !== undefined) {
    throw new UsageError(
      'A store is in a data directory or in a database: give --data-dir or --database-url.',
    );
  }
  if (databaseUrl !== undefined) return placeAt(databaseUrl);
  const database = process.env['DATABASE_URL']?.trim();
  if (directory === undefined && database !== undefined && database !== '') return placeAt(database);
  return { data_dir: dataDir(directory) };
}

/** `postgres://…` is a database, everything else a data directory. */
export function placeAt(text: string): StoreOptions {
  if (/^postgres(ql)?:\/\//.test(text)) return { database_url: text };
  if (/^[a-z]+:\/\//i.test(text)) {
    throw new UsageError(
      `${text.split('://')[0]}:// is no store of Flotilla.`,
      'Write postgres://… or a directory.',
    );
  }
  return { data_dir: dataDir(resolve(text)) };
}

/** For people; the password of a database is nobody's to read. */
export function placeName(place: StoreOptions): string {
  if ('data_dir' in place) return place.data_dir;
  if (!URL.canParse(place.database_url)) return 'the database';
  const { host, pathname } = new URL(place.database_url);
  return `postgres://${host}${pathname}`;
}
