import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';

/** A directory of its own for one test, gone with it. Short: a socket's path has 103 bytes. */
export async function folder(): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'fl-'));
  onTestFinished(() => rm(path, { recursive: true, force: true }));
  return path;
}
