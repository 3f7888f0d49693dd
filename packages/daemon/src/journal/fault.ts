/**
 * Why the journal cannot be written, and what to do, in words that may leave the machine: without its paths. One text
 * for one cause, by whichever call it is met: a change of the text is told.
 */
export function faultText(error: unknown): string {
  const { code = 'no code' } = error as NodeJS.ErrnoException;
  const [what, next] = FAULTS[code] ?? [`its disk refuses it (${code})`, "the daemon's log says more"];
  return `its journal cannot be written: ${what}; ${next}`;
}

const NO_FOLDER = ['a file is where its folder should be', 'move that away'] as const;

const FAULTS: Record<string, readonly [what: string, next: string]> = {
  ENOSPC: ['the disk is full (ENOSPC)', 'make room on it'],
  EDQUOT: ["its user's quota is used up (EDQUOT)", 'make room, or raise it'],
  EFBIG: ['it is larger than a file may be (EFBIG)', 'raise the limit (ulimit -f)'],
  EACCES: ['the daemon may not write to its folder (EACCES)', 'give the folder back to its user'],
  EPERM: ['its folder is not its own (EPERM)', 'give the folder back to its user'],
  EROFS: ['the file system is read-only (EROFS)', 'mount it writable'],
  EEXIST: NO_FOLDER,
  ENOTDIR: NO_FOLDER,
  EIO: ['the disk fails (EIO)', 'look at the log of the machine'],
};
