import { rm } from 'node:fs/promises';
import {
  type Credential,
  lockStateDir,
  readCredential,
  removeCredential,
  type StatePaths,
  statePaths,
  writeCredential,
} from './state-dir.ts';

/**
 * `leave` where no daemon runs: removes the credential, and the results that nobody will ask for. The control plane is
 * not told, and shows the node as offline until an operator revokes it.
 * @returns what was forgotten, or `null` when this machine was not enrolled
 * @throws {StateDirError} while a daemon runs: ask it to leave instead
 */
export function forgetEnrolment(state_dir: string): Promise<Enrolled | null> {
  return withEnrolment(state_dir, async (paths) => {
    await removeCredential(paths);
    await rm(paths.journal, { recursive: true, force: true });
  });
}

/**
 * A rotated credential in the place of the old one, where no daemon runs: the next one starts with it.
 * @returns whose it is now, or `null` when this machine was not enrolled
 * @throws {StateDirError} while a daemon runs: hand it over instead
 */
export function replaceCredential(state_dir: string, credential: string): Promise<Enrolled | null> {
  return withEnrolment(state_dir, (paths, kept) => writeCredential(paths, { ...kept, credential }));
}

interface Enrolled {
  name: string;
  url: string;
}

/** Under the directory's lock, as its one writer. */
async function withEnrolment(
  state_dir: string,
  change: (paths: StatePaths, kept: Credential) => Promise<void>,
): Promise<Enrolled | null> {
  const paths = statePaths(state_dir);
  // Without a look first, the lock would leave its file where there is nothing else.
  if ((await readCredential(paths)) === null) return null;
  const lock = await lockStateDir(paths);
  try {
    const kept = await readCredential(paths);
    if (kept === null) return null;
    await change(paths, kept);
    return { name: kept.name, url: kept.url };
  } finally {
    lock.release();
  }
}
