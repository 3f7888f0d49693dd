/** Why the journal cannot be written, and what to do, in words that may leave the machine: without its paths. */
export function faultText(error: unknown): string {
  const { code } = error as NodeJS.ErrnoException;
  const known = code === undefined ? undefined : FAULTS[code];
  const [what, next] = known ?? ['its disk refuses it', "the daemon's log says more"];
  return `its journal cannot be written: ${what}${code === undefined ? '' : ` (${code})`}; ${next}`;
}

const FULL = ['the disk is full', 'make room on it'] as const;
const REFUSED = ['the daemon may not write to its folder', 'give the folder back to its user'] as const;
const NO_FOLDER = ['a file is where its folder should be', 'move that away'] as const;

const FAULTS: Record<string, readonly [what: string, next: string]> = {
  ENOSPC: FULL,
  EDQUOT: FULL,
  EFBIG: ['it is larger than a file may be', 'raise the limit (ulimit -f)'],
  EACCES: REFUSED,
  EPERM: REFUSED,
  EROFS: ['the file system is read-only', 'mount it writable'],
  EEXIST: NO_FOLDER,
  ENOTDIR: NO_FOLDER,
  EIO: ['the disk fails', 'look at the log of the machine'],
};
