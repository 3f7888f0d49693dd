import { randomBytes } from 'node:crypto';
import { link, readFile, rm, writeFile } from 'node:fs/promises';
import { adminKeyPath } from '../data-dir.ts';

export interface AdminKey {
  key: string;
  path: string;
  /** Made now, for the first time. */
  fresh: boolean;
}

/** The admin key of a data directory: kept in a file of its owner's alone, made on the first start. */
export async function adminKey(data_dir: string): Promise<AdminKey> {
  const path = adminKeyPath(data_dir);
  const kept = await read(path);
  if (kept !== undefined) return { key: kept, path, fresh: false };
  const key = `flk_${randomBytes(32).toString('base64url')}`;
  const draft = `${path}.${process.pid}.new`;
  await writeFile(draft, `${key}\n`, { mode: 0o600, flush: true });
  try {
    // A link appears whole and never replaces a file: of two first starts at once, both get the key of one.
    await link(draft, path);
    return { key, path, fresh: true };
  } catch (error) {
    const other = await read(path);
    if (other === undefined) throw error;
    return { key: other, path, fresh: false };
  } finally {
    await rm(draft, { force: true });
  }
}

async function read(path: string): Promise<string | undefined> {
  try {
    return (await readFile(path, 'utf8')).trim() || undefined;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}
