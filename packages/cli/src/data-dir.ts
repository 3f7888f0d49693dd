import { mkdir } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { CommandError } from './failure.ts';

/** Where `flotilla up` keeps what it knows: the flag, else FLOTILLA_DATA_DIR, else `~/.flotilla`. */
export function dataDir(flag?: string): string {
  const given = flag ?? process.env['FLOTILLA_DATA_DIR'];
  if (given === undefined || given === '') return join(homedir(), '.flotilla');
  return absolute(given);
}

export async function makeDataDir(dir: string): Promise<void> {
  try {
    await mkdir(dir, { recursive: true, mode: 0o700 });
  } catch (error) {
    const { message } = error as Error;
    throw new CommandError(
      `The data directory ${dir} cannot be made: ${message}.`,
      'Give another with --data-dir.',
      {
        cause: error,
      },
    );
  }
}

/** Where the node on this machine has its files: beside those of `flotilla up`, unless the operator says otherwise. */
export function nodeStateDir(flag?: string): string {
  const given = flag ?? process.env['FLOTILLA_NODE_STATE_DIR'];
  return given === undefined || given === '' ? join(dataDir(), 'node') : absolute(given);
}

function absolute(path: string): string {
  return path === '~' || path.startsWith('~/') ? join(homedir(), path.slice(1)) : resolve(path);
}

export function secretKeyPath(dir: string): string {
  return join(dir, 'secret-key');
}

export function adminKeyPath(dir: string): string {
  return join(dir, 'admin-key');
}
