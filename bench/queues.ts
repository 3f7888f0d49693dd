import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { setTimeout as pause } from 'node:timers/promises';
import { join } from 'node:path';
import { freshDatabase } from '../tests/support/store.ts';
import { until } from '../tests/support/until.ts';
import { freePort } from '../tests/support/free-port.ts';
import type { World } from '../tests/support/world.ts';
import { generate } from './load.ts';
import { type NodeKind, startNode } from './nodes/start.ts';
import { order } from './orders.ts';
import { hasPeer } from './peers.ts';
import { startServer, track } from './script.ts';
import { benchKey, MODEL, openFlotilla, type Place } from './targets.ts';

/** What jobs are given to that do nothing: Flotilla, and the queues that people use today. */
export interface Queue {
  readonly name: string;
  /** @returns jobs a second, from the first sending until the last is done in its store */
  run(work: Work): Promise<number>;
  stop(): Promise<void>;
}

export interface Work {
  jobs: number;
  /** 1: each by itself. */
  batch: number;
  senders: number;
}

type Start = (place: Place) => Promise<Queue>;

export const QUEUES: Record<string, { start: Start; needs: 'postgres' | 'peers' | 'redis' | null }> = {
  'Flotilla, PostgreSQL': {
    start: (place) => flotilla('Flotilla, PostgreSQL', place, 'postgres', 'no-op node'),
    needs: 'postgres',
  },
  'Flotilla, PostgreSQL, daemon': {
    start: (place) => flotilla('Flotilla, PostgreSQL, daemon', place, 'postgres', 'daemon'),
    needs: 'postgres',
  },
  'Flotilla, PGlite': {
    start: (place) => flotilla('Flotilla, PGlite', place, 'embedded', 'no-op node'),
    needs: null,
  },
  'pg-boss': { start: (place) => onPostgres('pg-boss', place), needs: 'peers' },
  'graphile-worker': { start: (place) => onPostgres('graphile-worker', place), needs: 'peers' },
  bullmq: { start: bullmq, needs: 'redis' },
};

/** @returns why it cannot run here; undefined: it can */
export function missing(name: string, place: Place): string | undefined {
  const { needs } = QUEUES[name]!;
  if (needs === 'redis') {
    if (!hasPeer(name)) return 'peers are not installed';
    return spawnSync('redis-server', ['--version']).status === 0 ? undefined : 'no redis-server here';
  }
  if (needs !== null && place.database_url === undefined) return 'no PostgreSQL: give DATABASE_URL';
  return needs === 'peers' && !hasPeer(name) ? 'peers are not installed' : undefined;
}

const LOOK_EVERY_MS = 100;
const ENDED_WITHIN_MS = 600_000;

async function flotilla(
  name: string,
  place: Place,
  store: 'embedded' | 'postgres',
  kind: NodeKind,
): Promise<Queue> {
  const world = await openFlotilla(place, store);
  const node = await startNode(kind, world, place);
  const headers = { authorization: `Bearer ${await benchKey(world.plane)}` };
  const { url } = world.plane;
  return {
    name,
    async run({ jobs, batch, senders }) {
      const before = await ended(world);
      if (kind === 'no-op node') await order(node.port, 'count');
      const began_ms = performance.now();
      const { failed, failure } = await generate({
        url: batch === 1 ? `${url}/api/v1/jobs` : `${url}/api/v1/jobs/batch`,
        headers,
        body: batch === 1 ? Buffer.from(JSON.stringify({ kind: 'inference', ...JOB })) : batchOf(batch),
        connections: senders,
        for_ms: ENDED_WITHIN_MS,
        most: Math.ceil(jobs / batch),
        status: batch === 1 ? 202 : 200,
        expects: '"queued"',
      });
      if (failed > 0) throw new Error(`${name} refused ${failed} submissions: ${failure}`);
      if (kind === 'no-op node') await order(node.port, `committed?jobs=${jobs}`);
      else await haveEnded(world, before + jobs);
      return (jobs / (performance.now() - began_ms)) * 1000;
    },
    async stop() {
      await node.stop();
      await world.close();
    },
  };
}

const JOB = { model: MODEL, request: { messages: [{ role: 'user', content: 'Nothing' }] } };

function batchOf(jobs: number): Buffer {
  return Buffer.from(JSON.stringify({ jobs: Array.from({ length: jobs }, () => JOB) }));
}

/** A daemon tells nobody what has been committed: the control plane's own count is looked at. */
async function haveEnded(world: World, jobs: number): Promise<void> {
  await until(
    `${jobs} jobs have ended`,
    async () => {
      await pause(LOOK_EVERY_MS);
      return (await ended(world)) >= jobs;
    },
    ENDED_WITHIN_MS,
  );
}

async function ended({ plane }: World): Promise<number> {
  const text = await (await fetch(`${plane.url}/metrics`)).text();
  return Number(/^flotilla_detached_jobs_total\{outcome="succeeded"\} (\d+)/m.exec(text)?.[1] ?? 0);
}

async function onPostgres(name: string, place: Place): Promise<Queue> {
  const database = await freshDatabase(place.database_url!);
  const script = await startServer(`peers/${name}.js`, { DATABASE_URL: database.url });
  return {
    name,
    run: (work) => askPeer(script.port, work),
    async stop() {
      await script.stop();
      await database.drop();
    },
  };
}

async function bullmq(): Promise<Queue> {
  const dir = await mkdtemp(join(tmpdir(), 'flotilla-bench-redis-'));
  const port = await freePort();
  const settings = ['--port', String(port), '--bind', '127.0.0.1', '--dir', dir, '--save', ''];
  const redis = spawn('redis-server', [...settings, '--appendonly', 'yes', '--appendfsync', 'always'], {
    stdio: 'ignore',
  });
  track(redis);
  await until('Redis listens', () => listens(port));
  const script = await startServer('peers/bullmq.js', { REDIS_PORT: String(port) });
  return {
    name: 'bullmq',
    run: (work) => askPeer(script.port, work),
    async stop() {
      await script.stop();
      const closed = once(redis, 'close');
      redis.kill();
      await closed;
      await rm(dir, { recursive: true, force: true });
    },
  };
}

async function askPeer(port: number, { jobs, batch, senders }: Work): Promise<number> {
  const path = `run?jobs=${jobs}&batch=${batch}&senders=${senders}`;
  const { took_ms } = await order<{ took_ms: number }>(port, path);
  return (jobs / took_ms) * 1000;
}

function listens(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    socket.on('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.on('error', () => resolve(false));
  });
}
