import { open, rename, rm } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { Readable, type Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGzip } from 'node:zlib';
import { CommandError } from '../failure.ts';

/**
 * A backup on its way into a file: for its owner only, under another name until it has been read back whole and is on
 * disk, so that what has the name of a backup is one.
 */
export interface Saving<T> {
  file: string;
  /** Give up a file of that name. */
  force: boolean;
  source: AsyncIterable<Uint8Array>;
  check: (file: string) => Promise<T>;
  /** Ctrl-C: nothing is left behind. */
  signal: AbortSignal;
}

export async function saveBackup<T>({ file, force, source, check, signal }: Saving<T>): Promise<T> {
  const final = resolve(file);
  const partial = `${final}.part-${process.pid}`;
  const handle = await open(partial, 'wx', 0o600).catch((error: Error) => {
    throw new CommandError(`${partial} cannot be written: ${error.message}.`, 'Name another file.');
  });
  try {
    await handle.writeFile(source, { signal });
    await handle.sync();
    await handle.close();
    const found = await check(partial);
    signal.throwIfAborted();
    if (!force && (await exists(final))) throw taken(final);
    await rename(partial, final);
    await syncDirectory(dirname(final));
    return found;
  } catch (error) {
    await handle.close().catch(() => undefined);
    await rm(partial, { force: true });
    if (signal.aborted) throw new CommandError('Stopped; no backup was made.');
    throw error;
  }
}

export async function refuseTaken(file: string): Promise<void> {
  if (await exists(resolve(file))) throw taken(file);
}

/** Text on its way becomes the file's bytes. */
export function compressed(text: AsyncIterable<string>): AsyncIterable<Uint8Array> {
  const gzip = createGzip();
  pipeline(Readable.from(text), gzip as Writable).catch((error: Error) => gzip.destroy(error));
  return gzip;
}

async function exists(file: string): Promise<boolean> {
  return open(file, 'r').then(
    async (handle) => {
      await handle.close();
      return true;
    },
    (error: NodeJS.ErrnoException) => error.code !== 'ENOENT',
  );
}

function taken(file: string): CommandError {
  return new CommandError(`There is a file ${file} already.`, 'Name another, or give it up with --force.');
}

/** The name itself is on disk. Not every file system can say so. */
async function syncDirectory(directory: string): Promise<void> {
  try {
    const handle = await open(directory, 'r');
    await handle.sync();
    await handle.close();
  } catch {
    return;
  }
}
