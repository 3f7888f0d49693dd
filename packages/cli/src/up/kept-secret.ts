import { glob, link, readFile, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';

interface KeptSecret {
  secret: string;
  /** Made now, for the first time. */
  fresh: boolean;
}

/** A secret of this installation: kept in a file of its owner's alone, made on the first start. */
export async function keptSecret(path: string, make: () => string): Promise<KeptSecret> {
  const kept = await read(path);
  if (kept !== undefined) {
    await dropDrafts(path);
    return { secret: kept, fresh: false };
  }
  const secret = make();
  const draft = `${path}.${process.pid}.new`;
  await writeFile(draft, `${secret}\n`, { mode: 0o600, flush: true });
  try {
    // A link appears whole and never replaces a file: of two first starts at once, both get the secret of one.
    await link(draft, path);
    return { secret, fresh: true };
  } catch (error) {
    const other = await read(path);
    if (other === undefined) throw error;
    return { secret: other, fresh: false };
  } finally {
    await dropDrafts(path);
  }
}

/** Of starts that were killed as well. Whoever starts now and finds its own gone takes the secret that is there. */
async function dropDrafts(path: string): Promise<void> {
  const folder = dirname(path);
  for await (const draft of glob(`${basename(path)}.*.new`, { cwd: folder })) {
    await rm(join(folder, draft), { force: true });
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
