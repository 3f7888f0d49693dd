import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { until } from '../tests/support/until.ts';
import { fillDataDir, freshDatabase } from '../tests/support/store.ts';
import { freePort } from '../tests/support/free-port.ts';
import { type Plane, type TestNode, type World, openWorld } from '../tests/support/world.ts';
import { hasPeer } from './peers.ts';
import { startScript, startServer } from './script.ts';

/**
 * What requests are sent to: the backend itself, the bare floors, a peer, and Flotilla in each of its ways. All of them
 * have the same backend, all take the same request.
 */
export interface Target {
  readonly name: string;
  /** Of its `/v1/chat/completions`. */
  readonly url: string;
  readonly headers: Record<string, string>;
  readonly pids: number[];
  stop(): Promise<void>;
}

export const MODEL = 'bench';
/** More than any scenario has connections. */
export const SLOTS = 2048;
/** As many as a daemon offers. */
const DAEMON_SLOTS = 512;

/** What the targets stand on. */
export interface Place {
  backend_port: number;
  /** A server on which databases are made, and dropped; undefined: targets on PostgreSQL are left out. */
  database_url: string | undefined;
  nats_url: string | undefined;
  /** Where control planes and daemons leave their CPU profiles. */
  profile_dir: string | undefined;
}

/** @param daemons where there is a node: how many, each with `DAEMON_SLOTS` */
export type Start = (place: Place, daemons?: number) => Promise<Target>;

/** By name, in the order in which reports show them. A target that cannot be here says why by being absent from `available`. */
export const TARGETS: Record<string, { start: Start; needs?: 'postgres' | 'nats' | 'peers' }> = {
  direct: { start: direct },
  'one-hop floor': { start: oneHop },
  'two-hop floor': { start: (place) => twoHop('two-hop floor', place, null) },
  'recording floor, PGlite': { start: (place) => twoHop('recording floor, PGlite', place, 'embedded') },
  'recording floor, PostgreSQL': {
    start: (place) => twoHop('recording floor, PostgreSQL', place, 'postgres'),
    needs: 'postgres',
  },
  'Portkey 1.15.2': { start: portkey, needs: 'peers' },
  'Flotilla provider, PGlite': {
    start: (place) => flotillaProvider('Flotilla provider, PGlite', place, 'embedded'),
  },
  'Flotilla provider, PostgreSQL': {
    start: (place) => flotillaProvider('Flotilla provider, PostgreSQL', place, 'postgres'),
    needs: 'postgres',
  },
  'Flotilla node, PGlite': {
    start: (place, daemons) => flotillaNode('Flotilla node, PGlite', place, 'embedded', daemons),
  },
  'Flotilla node, PostgreSQL': {
    start: (place, daemons) => flotillaNode('Flotilla node, PostgreSQL', place, 'postgres', daemons),
    needs: 'postgres',
  },
  'Flotilla node, two replicas': { start: twoReplicas, needs: 'nats' },
};

/** @returns the names that can run here, and of the others why not */
export function available(place: Place): { names: string[]; missing: Record<string, string> } {
  const missing: Record<string, string> = {};
  for (const [name, { needs }] of Object.entries(TARGETS)) {
    if ((needs === 'postgres' || needs === 'nats') && place.database_url === undefined)
      missing[name] = 'no PostgreSQL: give DATABASE_URL';
    else if (needs === 'nats' && place.nats_url === undefined) missing[name] = 'no NATS: give NATS_URL';
    else if (needs === 'peers' && !hasPeer('@portkey-ai/gateway')) missing[name] = 'peers are not installed';
  }
  return { names: Object.keys(TARGETS).filter((name) => !(name in missing)), missing };
}

const NO_KEY = { authorization: 'Bearer none' };

async function direct({ backend_port }: Place): Promise<Target> {
  return {
    name: 'direct',
    url: chatAt(backend_port),
    headers: NO_KEY,
    pids: [],
    stop: () => Promise.resolve(),
  };
}

async function oneHop({ backend_port }: Place): Promise<Target> {
  const proxy = await startServer('floors/one-hop.ts', { BACKEND_URL: `http://127.0.0.1:${backend_port}` });
  return {
    name: 'one-hop floor',
    url: chatAt(proxy.port),
    headers: NO_KEY,
    pids: [proxy.pid],
    stop: () => proxy.stop(),
  };
}

async function twoHop(
  name: string,
  { backend_port, database_url }: Place,
  store: 'embedded' | 'postgres' | null,
): Promise<Target> {
  const dir = await mkdtemp(join(tmpdir(), 'flotilla-bench-'));
  const database = store === 'postgres' ? await freshDatabase(database_url!) : null;
  if (store === 'embedded') await fillDataDir(join(dir, 'floor'));
  const record_in = store === null ? '' : (database?.url ?? join(dir, 'floor'));
  const gateway = await startServer('floors/two-hop.ts', { RECORD_IN: record_in });
  const node = startScript('floors/node.ts', {
    BACKEND_URL: `http://127.0.0.1:${backend_port}`,
    GATEWAY_URL: `ws://127.0.0.1:${gateway.port}`,
  });
  await gateway.said(/joined/);
  return {
    name,
    url: chatAt(gateway.port),
    headers: NO_KEY,
    pids: [gateway.pid, node.pid],
    async stop() {
      await node.stop();
      await gateway.stop();
      await database?.drop();
      await rm(dir, { recursive: true, force: true });
    },
  };
}

async function portkey({ backend_port }: Place): Promise<Target> {
  const port = await freePort();
  const gateway = startScript(
    'node_modules/@portkey-ai/gateway/build/start-server.js',
    { NODE_ENV: 'production' },
    [`--port=${port}`, '--headless'],
  );
  await until('Portkey listens', () => answers(`http://127.0.0.1:${port}/`));
  return {
    name: 'Portkey 1.15.2',
    url: chatAt(port),
    headers: {
      ...NO_KEY,
      'x-portkey-provider': 'openai',
      'x-portkey-custom-host': `http://127.0.0.1:${backend_port}/v1`,
    },
    pids: [gateway.pid],
    stop: () => gateway.stop(),
  };
}

async function flotillaProvider(name: string, place: Place, store: 'embedded' | 'postgres'): Promise<Target> {
  const world = await openFlotilla(place, store);
  const { plane } = world;
  const base_url = `http://127.0.0.1:${place.backend_port}/v1`;
  const provider = { name: 'upstream', base_url, concurrency: SLOTS, probe: 'none' };
  await plane.send('POST', '/api/v1/providers', provider);
  const targets = [{ provider: 'upstream', model: MODEL }];
  await plane.send('POST', '/api/v1/routes', { name: MODEL, targets });
  return ofWorld(name, world, await benchKey(plane), plane.url, [plane.program().pid]);
}

async function flotillaNode(
  name: string,
  place: Place,
  store: 'embedded' | 'postgres',
  daemons = 1,
): Promise<Target> {
  const world = await openFlotilla(place, store);
  const nodes: TestNode[] = [];
  while (nodes.length < daemons) nodes.push(await joinNode(world, place, `bench-${nodes.length}`));
  const pids = [world.plane.program().pid, ...nodes.map((node) => node.program().pid)];
  return ofWorld(name, world, await benchKey(world.plane), world.plane.url, pids);
}

/** The node is linked to one replica, the clients are at the other. */
async function twoReplicas(place: Place): Promise<Target> {
  const world = await openFlotilla(place, 'postgres', { nats_url: place.nats_url! });
  const other = await world.replica();
  const node = await joinNode(world, place);
  await until('the other replica knows of the model', async () => {
    const { data } = await other.get<{ data: { id: string }[] }>('/v1/models');
    return data.some(({ id }) => id === MODEL);
  });
  const pids = [world.plane.program().pid, other.program().pid, node.program().pid];
  return ofWorld('Flotilla node, two replicas', world, await benchKey(other), other.url, pids);
}

interface FlotillaOptions {
  nats_url?: string;
  env?: Record<string, string>;
}

export function openFlotilla(
  { database_url, profile_dir }: Place,
  store: 'embedded' | 'postgres',
  { nats_url, env }: FlotillaOptions = {},
): Promise<World> {
  return openWorld({
    heartbeat_ms: 5000,
    env: { FLOTILLA_LOG_LEVEL: 'warn', ...env },
    server: store === 'postgres' ? database_url! : null,
    node_options: profile_dir === undefined ? [] : ['--cpu-prof', `--cpu-prof-dir=${resolve(profile_dir)}`],
    ...(nats_url !== undefined && { nats_url }),
  });
}

export function joinNode(world: World, { backend_port }: Place, name = 'bench'): Promise<TestNode> {
  return world.node({
    name,
    backends: [{ url: `http://127.0.0.1:${backend_port}/v1`, slots: DAEMON_SLOTS }],
    env: { FLOTILLA_LOG_LEVEL: 'warn' },
  });
}

function ofWorld(name: string, world: World, key: string, url: string, pids: number[]): Target {
  const headers = { authorization: `Bearer ${key}` };
  return { name, url: `${url}/v1/chat/completions`, headers, pids, stop: () => world.close() };
}

/** A key as users have, with every kind of limit, none of which is reached: the admin's has none that could be checked. */
export async function benchKey(plane: Plane): Promise<string> {
  const { key } = await plane.send<{ key: string }>('POST', '/api/v1/keys', {
    name: 'bench',
    scopes: ['inference', 'jobs'],
    requests_per_minute: 10_000_000,
    concurrency: 1_000_000,
    tokens_per_minute: 1_000_000_000_000,
    token_budget: { tokens: 1_000_000_000_000_000, period: 'month' },
  });
  return key;
}

function chatAt(port: number): string {
  return `http://127.0.0.1:${port}/v1/chat/completions`;
}

async function answers(url: string): Promise<boolean> {
  return fetch(url).then(
    () => true,
    () => false,
  );
}
