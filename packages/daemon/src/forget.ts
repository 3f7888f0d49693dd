import { lockStateDir, readCredential, removeCredential, statePaths } from './state-dir.ts';

/**
 * `leave` where no daemon runs: removes the credential. The control plane is not told, and shows the node as offline
 * until an operator revokes it.
 * @returns what was forgotten, or `null` when this machine was not enrolled
 * @throws {StateDirError} while a daemon runs: ask it to leave instead
 */
export async function forgetEnrolment(state_dir: string): Promise<{ name: string; url: string } | null> {
  const paths = statePaths(state_dir);
  const kept = await readCredential(paths);
  if (kept === null) return null;
  const lock = await lockStateDir(paths);
  try {
    await removeCredential(paths);
  } finally {
    lock.release();
  }
  return { name: kept.name, url: kept.url };
}
