import { mkdirSync, openSync, renameSync, statSync, writeSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { dirname } from 'node:path';

/** Begins a log, or goes on with one that is not long yet; the one before it is kept as `….1`. */
export function openLog(path: string, longest_bytes = 0): number {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const bytes = statSync(path, { throwIfNoEntry: false })?.size ?? 0;
  if (bytes > longest_bytes) renameSync(path, `${path}.1`);
  return openSync(path, 'a', 0o600);
}

const OWN_LOG_BYTES = 10 * 1024 * 1024;

/** A log that this process writes itself. */
export function openLogFile(path: string): { write(line: string): void } {
  // Not moved away at each start: a second start, which will be refused, must not take the log of the first.
  const file = openLog(path, OWN_LOG_BYTES);
  return { write: (line) => void writeSync(file, line) };
}

/** The end of a log, for the person who has to know why something ended. */
export async function logTail(path: string, lines = 5): Promise<string> {
  const text = await readFile(path, 'utf8').catch(() => '');
  const last = text.trimEnd().split('\n').slice(-lines);
  return last.map((line) => `  ${line}`).join('\n');
}
