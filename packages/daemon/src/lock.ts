import { DatabaseSync } from 'node:sqlite';

/**
 * One daemon a state directory.
 *
 * Node has no `flock`, and a file with a pid in it is wrong after `kill -9` or a reboot. SQLite takes a lock of the
 * operating system on its file (fcntl; LockFileEx on Windows) which the kernel drops with the process, however it
 * ends, which other containers that share the directory see, and which children do not inherit. So the lock is an
 * empty SQLite file with an exclusive transaction that never writes.
 *
 * Nothing else may open the file: closing any other descriptor of it in this process would drop the lock.
 *
 *     free ──take──▶ held ──release, or death of the process──▶ free
 */
export interface Lock {
  release(): void;
}

/** Takes the lock, or returns `null` when another process (or this one) holds it. */
export function takeLock(path: string): Lock | null {
  const file = new DatabaseSync(path);
  try {
    file.exec('PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE');
  } catch (error) {
    file.close();
    if (isBusy(error)) return null;
    throw error;
  }
  return {
    release() {
      if (file.isOpen) file.close();
    },
  };
}

function isBusy(error: unknown): boolean {
  const SQLITE_BUSY = 5;
  return error instanceof Error && 'errcode' in error && error.errcode === SQLITE_BUSY;
}
