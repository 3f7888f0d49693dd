import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Flotilla } from '@flotilla/sdk';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { run } from '../../packages/cli/src/testing/command.ts';
import { flotilla, type Program } from '../support/program.ts';
import { fillDataDir } from '../support/store.ts';
import { until } from '../support/until.ts';

/** Everything on one machine, by one command. */
vi.setConfig({ testTimeout: 90_000, hookTimeout: 90_000 }); // several processes start, one after the other

const shell = promisify(execFile);
/** Nothing of this machine's own is asked for or disturbed. */
const APART = { FLOTILLA_NODE_STATUS_PORT: '0', FLOTILLA_NODE_FIND_BACKENDS: 'false' };

const dirs: string[] = [];
const started: Program[] = [];
afterAll(async () => {
  await Promise.all(started.map((program) => program.stop()));
  await Promise.all(dirs.map((dir) => rm(dir, { recursive: true, force: true })));
});

async function newDir(): Promise<string> {
  // Short: the path of a socket lies below it.
  const dir = await mkdtemp(join(tmpdir(), 'fl-'));
  dirs.push(dir);
  return dir;
}

function start(dir: string, ...flags: string[]): Program {
  const program = flotilla(['up', '--port', '0', '--data-dir', dir, ...flags], APART);
  started.push(program);
  return program;
}

async function up(dir: string, ...flags: string[]): Promise<Program & { url: string }> {
  const program = start(dir, ...flags);
  const isReady = () => {
    if (program.child.exitCode !== null) throw new Error(`It ended:\n${program.output()}`);
    return /Only this machine|"event":"ready"/.test(program.stdout());
  };
  await until('it is up', isReady, 60_000);
  return { ...program, url: /http:\/\/127\.0\.0\.1:\d+/.exec(program.stdout())?.[0] ?? '' };
}

async function clientOf(dir: string, url: string): Promise<Flotilla> {
  return new Flotilla({ url, api_key: (await readFile(join(dir, 'admin-key'), 'utf8')).trim() });
}

/** The processes that it has beside itself. */
async function partsOf({ pid }: Program): Promise<number[]> {
  const { stdout } = await shell('ps', ['-A', '-o', 'pid=,ppid=']);
  const processes = stdout.trim().split('\n');
  const pairs = processes.map((line) => line.trim().split(/\s+/).map(Number));
  return pairs.flatMap(([child, parent]) => (parent === pid ? [child!] : []));
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

describe('flotilla up', () => {
  let dir: string;
  let fleet: Awaited<ReturnType<typeof up>>;
  beforeAll(async () => {
    dir = await newDir();
    await fillDataDir(dir);
    fleet = await up(dir, '--sim');
  });

  test('prints a curl that works as it is printed', async () => {
    const [, curl = ''] = /Try it:\n([^]*?)\n\n/.exec(fleet.stdout()) ?? [];
    expect(curl).toContain('/v1/chat/completions');
    const { stdout } = await shell('sh', ['-c', curl]);
    const answer = JSON.parse(stdout) as { choices: { message: { content: string } }[] };
    expect(answer.choices[0]?.message.content).toContain('[simulated]');
  });

  test('says that its model server is simulated, and shows its key to nobody but its owner', async () => {
    expect(fleet.stdout()).toContain('SIMULATED');
    const path = join(dir, 'admin-key');
    const key = (await readFile(path, 'utf8')).trim();
    expect(key).toMatch(/^flk_[\w-]{43}$/);
    expect((await stat(path)).mode & 0o777).toBe(0o600);
    expect(fleet.output()).not.toContain(key);
  });

  test('serves the other commands without a key being given', async () => {
    const environment = { FLOTILLA_URL: fleet.url, FLOTILLA_DATA_DIR: dir };
    const nodes = await run(['nodes'], environment);
    expect(nodes.stdout).toMatch(/online +healthy +0\/\d+ +flotilla-sim/);
    const chat = await run(['chat', 'hello there'], environment);
    expect(chat).toMatchObject({ code: 0, stderr: '' });
    expect(chat.stdout).toContain('hello there');
    const status = await run(['node', 'status', '--state-dir', join(dir, 'node')]);
    expect(status.stdout).toMatch(/gets work +yes/);
    expect(status.stdout).toContain('simulated');
  });

  test('refuses a second one on the same data directory, and says whose it is', async () => {
    const second = await run(['up', '--port', '0', '--data-dir', dir], APART);
    expect(second).toMatchObject({ code: 1, stdout: '' });
    expect(second.stderr).toMatch(/^error: .*in use[^]*--data-dir/m);
  });

  test('whose port is taken names --port', async () => {
    const { port } = new URL(fleet.url);
    const other_dir = await newDir();
    await fillDataDir(other_dir);
    const other = await run(['up', '--port', port, '--data-dir', other_dir], APART);
    expect(other).toMatchObject({ code: 1, stdout: '' });
    expect(other.stderr).toMatch(new RegExp(`error: Port ${port} [^]*--port`));
  });

  test('lets a machine join in the background; there it can be asked, drained and left', async () => {
    const admin = await clientOf(dir, fleet.url);
    const { token } = await admin.tokens.create({ labels: { site: 'test' } });
    const state = join(await newDir(), 'n');
    const joined = await run(
      ['join', fleet.url, '--token', '-', '--name', 'attic', '--state-dir', state, '--detach', '--json'],
      APART,
      `${token}\n`,
    );
    expect(joined).toMatchObject({ code: 0, stderr: '' });
    const events = joined.stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    expect(events).toMatchObject([{ event: 'enrolled', fresh: true, name: 'attic' }, { event: 'connected' }]);
    const [attic] = (await admin.nodes.list().take(10)).filter(({ name }) => name === 'attic');
    expect(attic).toMatchObject({ state: 'online', labels: { site: 'test' } });

    const drained = await run(['node', 'drain', '--state-dir', state]);
    expect(drained).toMatchObject({ code: 0 });
    await until('its daemon is gone', () => !isAlive(Number(events[1]?.['pid'])));
    const left = await run(['node', 'leave', '--state-dir', state]);
    expect(left.stderr).toContain('attic has left');
    expect(await run(['node', 'status', '--state-dir', state])).toMatchObject({ code: 1 });
  });

  test('ends in order at a signal and takes its parts along; the next start goes on', async () => {
    const parts = await partsOf(fleet);
    expect(parts).toHaveLength(2);
    fleet.signal('SIGINT');
    expect(await fleet.ended).toMatchObject({ code: 0 });
    expect(parts.filter(isAlive)).toEqual([]);
    expect(await readFile(join(dir, 'logs', 'node.log'), 'utf8')).toContain('Drained and deregistered');

    fleet = await up(dir, '--sim', '--json');
    const nodes = await (await clientOf(dir, fleet.url)).nodes.list().take(10);
    expect(nodes.filter(({ name }) => name !== 'attic')).toMatchObject([{ state: 'online' }]);
  });

  test('ended by kill -9 leaves no part behind', async () => {
    const { processes } = JSON.parse(fleet.stdout()) as { processes: { name: string; pid: number }[] };
    expect(processes.map(({ name }) => name)).toEqual(['simulated backend', 'node']);
    const parts = processes.map(({ pid }) => pid);
    expect(parts.filter(isAlive)).toEqual(parts);
    fleet.signal('SIGKILL');
    await fleet.ended;
    await until('its parts are gone', () => !parts.some(isAlive));
  });
});

describe('flotilla up for the first time', () => {
  let dir: string;
  beforeAll(async () => {
    dir = await newDir();
  });

  test('may be ended before the start is over', async () => {
    const program = start(dir);
    await until('it has begun', () => program.output().includes('Starting'));
    program.signal('SIGTERM');
    expect(await program.ended).toMatchObject({ code: 0, stdout: '' });
  });

  test('without a node has nothing to wait for', async () => {
    const fleet = await up(dir, '--no-node', '--json');
    expect(JSON.parse(fleet.stdout())).toMatchObject({ event: 'ready', node: null, model: null });
  });
});
