import { randomBytes } from 'node:crypto';
import { adminKeyPath } from '../data-dir.ts';
import { keptSecret } from './kept-secret.ts';

export interface AdminKey {
  key: string;
  path: string;
  /** Made now, for the first time. */
  fresh: boolean;
}

/** The admin key of a data directory. */
export async function adminKey(data_dir: string): Promise<AdminKey> {
  const path = adminKeyPath(data_dir);
  const { secret, fresh } = await keptSecret(path, () => `flk_${randomBytes(32).toString('base64url')}`);
  return { key: secret, path, fresh };
}
