import { execFile, execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { rm, statfs, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { until } from './until.ts';

/** Only root may put another disk in a folder's place, and not in every container. */
export const MAY_MOUNT = mayMount();

/** A small disk in the place of a folder; what was there is there again afterwards. */
export interface SmallDisk {
  /** No byte more fits on it, or only so many. */
  fill(leave_bytes?: number): Promise<void>;
  empty(): Promise<void>;
  /** From now on it takes nothing, and can be read. */
  makeReadOnly(): Promise<void>;
  unmount(): Promise<void>;
}

const run = promisify(execFile);
/** What a daemon that starts on it leaves alone. */
const FILLER = 'filler.unreadable';

export async function mountSmallDisk(path: string, options = 'size=64k'): Promise<SmallDisk> {
  await run('mount', ['-t', 'tmpfs', '-o', options, 'tmpfs', path]);
  let mounted = true;
  return {
    async fill(leave_bytes = 0) {
      const { bavail, bsize } = await statfs(path);
      const free_bytes = bavail * bsize;
      const wanted_bytes = leave_bytes === 0 ? free_bytes + bsize : free_bytes - leave_bytes;
      const full = await writeFile(join(path, FILLER), Buffer.alloc(wanted_bytes)).catch(
        (error: unknown) => error,
      );
      if (leave_bytes === 0 && (full as NodeJS.ErrnoException | undefined)?.code !== 'ENOSPC')
        throw new Error('It is not full.');
    },
    empty: () => rm(join(path, FILLER)),
    makeReadOnly: async () => void (await run('mount', ['-o', 'remount,ro', path])),
    async unmount() {
      if (!mounted) return;
      // Whoever writes to it at this moment keeps it busy.
      await until('the disk is unmounted', () =>
        run('umount', [path]).then(
          () => true,
          () => false,
        ),
      );
      mounted = false;
    },
  };
}

function mayMount(): boolean {
  const path = mkdtempSync(join(tmpdir(), 'flotilla-disk-'));
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=4k', 'tmpfs', path], { stdio: 'ignore' });
    execFileSync('umount', [path], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  } finally {
    rmSync(path, { recursive: true, force: true });
  }
}
