import { open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';

/**
 * Replaces a file so that a reader, or a crash at any moment, sees the old text or the new one, never a torn one: a
 * temporary file beside it, fsync, rename, and fsync of the directory so that the rename itself survives.
 *
 * One writer a path: the directory's lock sees to that between processes, the caller within one.
 */
export async function writeFileAtomically(path: string, text: string, mode = 0o644): Promise<void> {
  const temporary = `${path}.tmp`;
  // A file left by a crash may have another mode, which `open` would keep.
  await rm(temporary, { force: true });
  const file = await open(temporary, 'wx', mode);
  try {
    await file.chmod(mode); // the umask may have taken bits away
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(temporary, path);
  const directory = await open(dirname(path), 'r');
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}
