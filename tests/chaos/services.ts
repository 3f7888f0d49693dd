import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chown, mkdtemp, rm } from 'node:fs/promises';
import { existsSync, globSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';
import pg from 'pg';
import { freePort } from '../support/free-port.ts';
import { until } from '../support/until.ts';

/**
 * A PostgreSQL and a NATS of the suite's own, that may be killed: each keeps its port and its data.
 *
 *     up ──kill()──▶ down ──start()──▶ up          up ──freeze()──▶ frozen ──thaw()──▶ up
 *      └──stop() (an orderly one)──▲
 */
export interface Service {
  readonly port: number;
  /** Of it and of those that it started. */
  pids(): Promise<number[]>;
  /** kill -9 of all of it at once. */
  kill(): Promise<void>;
  stop(): Promise<void>;
  /** Resolves when it answers; what is left of it before may keep it from starting for a moment. */
  start(): Promise<void>;
  /** SIGSTOP: it neither answers nor closes anything. */
  freeze(): Promise<void>;
  thaw(): Promise<void>;
  /** For good, with its data. */
  close(): Promise<void>;
}

const run = promisify(execFile);
const PLACES = ['/usr/lib/postgresql/*/bin', '/usr/pgsql-*/bin', '/usr/sbin', '/usr/local/bin', '/opt/*/bin'];
const UP_WITHIN_MS = 60_000;

/** With fsync: what it has acknowledged is what is looked for afterwards. */
export async function startPostgres(): Promise<Service & { readonly url: string }> {
  const [initdb, postgres] = [program('initdb', 'PostgreSQL'), program('postgres', 'PostgreSQL')];
  const owner = await unprivileged('postgres');
  const dir = await mkdtemp(join(tmpdir(), 'flotilla-postgres-'));
  if (owner !== undefined) await chown(dir, owner.uid, owner.gid);
  await run(initdb, ['-D', dir, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--no-sync'], { ...owner });
  const port = await freePort();
  const url = `postgres://postgres@127.0.0.1:${port}/postgres`;
  const args = ['-D', dir, '-p', String(port), '-c', 'listen_addresses=127.0.0.1'];
  args.push('-c', 'unix_socket_directories=', '-c', 'max_connections=80');
  // SIGINT: clients are cut off, and what is written stays.
  const service = await serve(port, [postgres, ...args], { ...owner, cwd: dir }, 'SIGINT', () =>
    answers(url),
  );
  return { ...service, url, close: () => service.close().then(() => remove(dir)) };
}

export async function startNats(): Promise<Service & { readonly url: string }> {
  const port = await freePort();
  const command = [program('nats-server', 'NATS'), '-a', '127.0.0.1', '-p', String(port)];
  const service = await serve(port, command, {}, 'SIGTERM', () => accepts(port));
  return { ...service, url: `nats://127.0.0.1:${port}` };
}

async function serve(
  port: number,
  [file, ...args]: string[],
  options: { uid?: number; gid?: number; cwd?: string },
  stop_signal: NodeJS.Signals,
  up: () => Promise<boolean>,
): Promise<Service> {
  let child: ChildProcess;
  let said = '';
  const orphaned = () => void child.kill('SIGKILL');
  process.on('exit', orphaned);
  const ended = () => child.exitCode !== null || child.signalCode !== null;
  const service: Service = {
    port,
    pids: async () => [child.pid!, ...(await childrenOf(child.pid!))],
    async kill() {
      // Stopped first, so that it starts no other while those that it has are killed.
      child.kill('SIGSTOP');
      const pids = await service.pids();
      for (const pid of pids.toReversed()) signal(pid, 'SIGKILL');
      if (!ended()) await once(child, 'close');
    },
    async stop() {
      child.kill(stop_signal);
      if (!ended()) await once(child, 'close');
    },
    async start() {
      await until(
        `${file} answers`,
        async () => {
          if (child === undefined || ended()) launch();
          return up();
        },
        UP_WITHIN_MS,
      ).catch((error: unknown) => {
        throw new Error(`${String(error)}\n${said.slice(-2000)}`);
      });
    },
    async freeze() {
      child.kill('SIGSTOP');
      for (const pid of await service.pids()) signal(pid, 'SIGSTOP');
    },
    async thaw() {
      for (const pid of await service.pids()) signal(pid, 'SIGCONT');
    },
    async close() {
      await service.thaw();
      await service.stop();
      process.off('exit', orphaned);
    },
  };
  await service.start();
  return service;

  function launch(): void {
    child = spawn(file!, args, { ...options, stdio: ['ignore', 'pipe', 'pipe'] });
    for (const stream of [child.stdout!, child.stderr!]) {
      stream.setEncoding('utf8').on('data', (text: string) => (said = (said + text).slice(-20_000)));
    }
  }
}

/** Where it is on this machine. */
function program(name: string, product: string): string {
  const folders = [
    ...(process.env['PATH'] ?? '').split(delimiter),
    ...PLACES.flatMap((place) => globSync(place)).toSorted((a, b) =>
      b.localeCompare(a, 'en', { numeric: true }),
    ),
  ];
  const found = folders.map((folder) => join(folder, name)).find((path) => existsSync(path));
  if (found === undefined)
    throw new Error(
      `${name} is not on this machine: these tests start and kill a ${product} of their own. Install it, or add its folder to PATH.`,
    );
  return found;
}

/** PostgreSQL refuses to run as root; undefined: this is somebody else already. */
async function unprivileged(user: string): Promise<{ uid: number; gid: number } | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  const number = async (flag: string) => Number((await run('id', [flag, user])).stdout);
  return { uid: await number('-u'), gid: await number('-g') };
}

async function childrenOf(pid: number): Promise<number[]> {
  const listed = await run('pgrep', ['-P', String(pid)]).catch(() => ({ stdout: '' }));
  return listed.stdout.split('\n').filter(Boolean).map(Number);
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch {
    // It has ended meanwhile.
  }
}

async function answers(url: string): Promise<boolean> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 2000 });
  client.on('error', () => undefined);
  try {
    await client.connect();
    await client.query('select 1');
    return true;
  } catch {
    return false;
  } finally {
    await client.end().catch(() => undefined);
  }
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    socket.on('connect', () => resolve(true)).on('error', () => resolve(false));
    socket.on('connect', () => socket.destroy());
  });
}

const remove = (dir: string) => rm(dir, { recursive: true, force: true });
