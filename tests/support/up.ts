import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Flotilla } from '@flotilla/sdk';
import { type Program, flotilla } from './program.ts';
import { until } from './until.ts';

/** Nothing of this machine's own is asked for or disturbed. */
export const APART = { FLOTILLA_NODE_STATUS_PORT: '0', FLOTILLA_NODE_FIND_BACKENDS: 'false' };

const dirs: string[] = [];
const started: Program[] = [];

/** Stops what was started here, and removes its directories. */
export async function endAll(): Promise<void> {
  await Promise.all(started.splice(0).map((program) => program.stop()));
  await Promise.all(dirs.splice(0).map((dir) => rm(dir, { recursive: true, force: true })));
}

export async function newDir(): Promise<string> {
  // Short: the path of a socket lies below it.
  const dir = await mkdtemp(join(tmpdir(), 'fl-'));
  dirs.push(dir);
  return dir;
}

export function start(dir: string, ...flags: string[]): Program {
  const program = flotilla(['up', '--port', '0', '--data-dir', dir, ...flags], APART);
  started.push(program);
  return program;
}

export async function up(dir: string, ...flags: string[]): Promise<Program & { url: string }> {
  const program = start(dir, ...flags);
  const isReady = () => {
    if (program.child.exitCode !== null) throw new Error(`It ended:\n${program.output()}`);
    return /Only this machine|"event":"ready"/.test(program.stdout());
  };
  await until('it is up', isReady, 60_000);
  return { ...program, url: /http:\/\/127\.0\.0\.1:\d+/.exec(program.stdout())?.[0] ?? '' };
}

export async function clientOf(dir: string, url: string): Promise<Flotilla> {
  return new Flotilla({ url, api_key: (await readFile(join(dir, 'admin-key'), 'utf8')).trim() });
}

/** The processes that it has beside itself. */
export async function partsOf({ pid }: Program): Promise<number[]> {
  const { stdout } = await promisify(execFile)('ps', ['-A', '-o', 'pid=,ppid=']);
  const processes = stdout.trim().split('\n');
  const pairs = processes.map((line) => line.trim().split(/\s+/).map(Number));
  return pairs.flatMap(([child, parent]) => (parent === pid ? [child!] : []));
}

export function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}
