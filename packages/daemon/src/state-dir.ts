import { chmod, mkdir, readFile, rm, stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { z } from 'zod';
import { writeFileAtomically } from './atomic-file.ts';
import { type Lock, takeLock } from './lock.ts';

/**
 * A node's own directory. Every file in it has one writer: the process that holds `lock`.
 *
 * | File | Written | Read by |
 * |---|---|---|
 * | `lock` | never; locked while a daemon runs or enrols | daemons |
 * | `credential` | by `enrol` and by `flotilla node credential`; removed by `leave` | the daemon |
 * | `node.yaml` | by the operator, and by `join` for the settings given to it | the daemon |
 * | `heartbeat.json` | every interval and at each change of status | other programs |
 * | `registry.json` | when an agent starts, exits or is adopted | other programs, the reaper |
 * | `status.json` | once, when the status server listens | other programs |
 * | `journal/` | when detached work begins, ends, and is acknowledged | the daemon's next process |
 * | `control.sock` | while the daemon runs | the commands |
 */
export interface StatePaths {
  dir: string;
  lock: string;
  credential: string;
  config: string;
  heartbeat: string;
  registry: string;
  status: string;
  control: string;
  journal: string;
}

/** What the operator gave outranks the environment, which outranks the default. */
export function stateDirOf(given?: string, environment: NodeJS.ProcessEnv = process.env): string {
  const path = given ?? environment['FLOTILLA_NODE_STATE_DIR'];
  if (path === undefined || path === '') return join(homedir(), '.flotilla', 'node');
  return resolve(path.startsWith('~/') ? join(homedir(), path.slice(2)) : path);
}

export function statePaths(dir: string): StatePaths {
  return {
    dir,
    lock: join(dir, 'lock'),
    credential: join(dir, 'credential'),
    config: join(dir, 'node.yaml'),
    heartbeat: join(dir, 'heartbeat.json'),
    registry: join(dir, 'registry.json'),
    status: join(dir, 'status.json'),
    control: join(dir, 'control.sock'),
    journal: join(dir, 'journal'),
  };
}

/** A refusal for the operator: what is wrong and what to do next. */
export class StateDirError extends Error {
  override readonly name = 'StateDirError';
}

export async function openStateDir(dir: string): Promise<StatePaths> {
  try {
    await mkdir(dir, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw new StateDirError(
      `The state directory ${dir} cannot be made (${(error as Error).message}). Give another with --state-dir.`,
      { cause: error },
    );
  }
  return statePaths(dir);
}

/** Takes the directory for this process, or says who has it. */
export async function lockStateDir(paths: StatePaths): Promise<Lock> {
  let lock: Lock | null;
  try {
    lock = takeLock(paths.lock);
  } catch (error) {
    throw new StateDirError(
      `The state directory ${paths.dir} cannot be locked (${(error as Error).message}). ` +
        'It must be writable by this user and on a file system with locks.',
      { cause: error },
    );
  }
  if (lock !== null) return lock;
  const pid = await holder(paths);
  throw new StateDirError(
    `Another Flotilla daemon${pid === null ? '' : ` (process ${pid})`} uses ${paths.dir}. ` +
      'See it with `flotilla node status`, or give this one its own --state-dir.',
  );
}

async function holder(paths: StatePaths): Promise<number | null> {
  try {
    const beat: unknown = JSON.parse(await readFile(paths.heartbeat, 'utf8'));
    const parsed = z.object({ pid: z.number(), status: z.string() }).safeParse(beat);
    return parsed.success && parsed.data.status !== 'stopped' ? parsed.data.pid : null;
  } catch {
    return null;
  }
}

const credentialSchema = z.object({
  url: z.string(),
  node_id: z.string(),
  name: z.string(),
  credential: z.string(),
  /** The operator has agreed to plain http. */
  insecure: z.boolean().default(false),
  enrolled_at: z.string().default(''),
});
export type Credential = z.infer<typeof credentialSchema>;

/** Looks like what `enrol` and `flotilla nodes rotate` give; whether it is one only the control plane knows. */
export function isNodeCredential(text: string): boolean {
  return /^fln_[\w-]+$/.test(text);
}

/** The credential kept here, or `null` when this machine is not enrolled. */
export async function readCredential(paths: StatePaths): Promise<Credential | null> {
  let text: string;
  try {
    text = await readFile(paths.credential, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw new StateDirError(`${paths.credential} cannot be read: ${(error as Error).message}`, {
      cause: error,
    });
  }
  await closeToOthers(paths.credential);
  try {
    return credentialSchema.parse(JSON.parse(text));
  } catch (error) {
    throw new StateDirError(
      `${paths.credential} is damaged. Restore it from a backup, or remove it and enrol again with ` +
        '`flotilla join URL --token …`.',
      { cause: error },
    );
  }
}

export async function writeCredential(paths: StatePaths, credential: Credential): Promise<void> {
  await writeFileAtomically(paths.credential, `${JSON.stringify(credential, null, 2)}\n`, 0o600);
}

export async function removeCredential(paths: StatePaths): Promise<void> {
  await rm(paths.credential, { force: true });
}

/** A copy or a careless `chmod` may have opened the file; whoever reads it takes that back. */
async function closeToOthers(path: string): Promise<void> {
  const { mode } = await stat(path);
  if ((mode & 0o077) !== 0) await chmod(path, 0o600);
}
