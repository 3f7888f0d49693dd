import { mkdtemp, mkdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { NodeView, UsageRow } from '@flotilla/protocol';
import { freePort } from './free-port.ts';
import { type Program, flotilla } from './program.ts';
import { type Proxy, startProxy } from './proxy.ts';
import { type Handler, type ScriptedBackend, startScriptedBackend } from './scripted-backend.ts';
import { fillDataDir, freshDatabase, testServer } from './store.ts';
import { until } from './until.ts';

/**
 * A control plane, nodes and backends as real processes and sockets, with a short heartbeat, gone at the end of the
 * test. On PostgreSQL where FLOTILLA_TEST_DATABASE_URL says so, else embedded.
 */
export interface World {
  readonly dir: string;
  /** Undefined: the store is embedded, in `<dir>/plane`. */
  readonly database_url: string | undefined;
  /** What the control plane reaches its database through, where `cuttable_store` asked for that. */
  readonly store_link: Proxy | undefined;
  readonly plane: Plane;
  /** Another replica on the same store; needs `nats_url`. */
  replica(more?: Record<string, string>): Promise<Plane>;
  node(options: NodeOptions): Promise<TestNode>;
  backend(answer: Handler, models?: string[]): Promise<ScriptedBackend>;
  proxy(port: number): Promise<Proxy>;
  /** A new API key; without a body it may do inference only. */
  key(body?: Record<string, unknown>): Promise<string>;
  nodes(): Promise<NodeView[]>;
  usage(): Promise<UsageRow[]>;
  close(): Promise<void>;
}

export interface Plane {
  readonly url: string;
  readonly port: number;
  readonly admin_key: string;
  /** The process now; another one after `restart`. */
  program(): Program;
  /** Everything every process of it printed. */
  output(): string;
  get<T>(path: string, key?: string): Promise<T>;
  send<T>(method: string, path: string, body?: unknown, key?: string): Promise<T>;
  chat(
    body: Record<string, unknown>,
    init?: Omit<RequestInit, 'headers'> & { key?: string; headers?: Record<string, string> },
  ): Promise<Response>;
  /** The ids of the nodes whose links it has, of several replicas. */
  linked(): Promise<string[]>;
  /** @param more settings that it has from then on */
  restart(more?: Record<string, string>): Promise<void>;
}

interface NodeOptions {
  name: string;
  backends: {
    url: string;
    slots?: number;
    probe?: 'list' | 'generate';
    idle_timeout_ms?: number;
    api_key?: string;
  }[];
  /** Where the daemon reaches the control plane, if not directly. */
  control_url?: string;
  token?: Record<string, unknown>;
  env?: Record<string, string>;
  /** Do not wait until it is online with healthy backends. */
  unready?: boolean;
}

export interface TestNode {
  readonly id: string;
  readonly name: string;
  readonly state_dir: string;
  /** What it joined with. */
  readonly token: string;
  program(): Program;
  /** Everything every process of it printed. */
  output(): string;
  view(): Promise<NodeView>;
  restart(): Promise<void>;
}

export interface WorldOptions {
  heartbeat_ms?: number;
  env?: Record<string, string>;
  /** On PostgreSQL, put a hop between control plane and database. */
  cuttable_store?: boolean;
  /** The control plane is one of several replicas. Needs PostgreSQL. */
  nats_url?: string;
  /** A database of the test's own, that it drops itself. */
  database_url?: string;
  /** Where the embedded store is to be, instead of `<dir>/plane`. */
  data_dir?: string;
  /** The PostgreSQL server on which a database is made; null: embedded. Absent: as FLOTILLA_TEST_DATABASE_URL says. */
  server?: string | null;
  /** Of Node itself, instead of those of the tests. */
  node_options?: readonly string[];
}

const ADMIN_KEY = `flk_test-${'x'.repeat(40)}`;

export async function openWorld({
  heartbeat_ms = 500,
  env = {},
  cuttable_store = false,
  nats_url,
  server = testServer ?? null,
  database_url,
  data_dir: given_data_dir,
  node_options,
}: WorldOptions = {}): Promise<World> {
  const dir = await mkdtemp(join(tmpdir(), 'flotilla-world-'));
  const own = database_url === undefined ? undefined : { url: database_url, drop: async () => undefined };
  const database = own ?? (server === null ? undefined : await freshDatabase(server));
  const data_dir = given_data_dir ?? join(dir, 'plane');
  if (database === undefined) await fillDataDir(data_dir);
  const programs: Program[] = [];
  const closers: (() => Promise<void>)[] = [];
  const store_url = database === undefined ? undefined : new URL(database.url);
  const store_link =
    store_url === undefined || !cuttable_store
      ? undefined
      : await startProxy({ host: store_url.hostname, port: Number(store_url.port || 5432) });
  if (store_url !== undefined && store_link !== undefined) {
    store_url.host = `127.0.0.1:${store_link.port}`;
    closers.push(() => store_link.close());
  }
  const settings = {
    FLOTILLA_HOST: '127.0.0.1',
    FLOTILLA_ADMIN_KEY: ADMIN_KEY,
    FLOTILLA_DATA_DIR: data_dir,
    FLOTILLA_HEARTBEAT_MS: String(heartbeat_ms),
    ...(store_url === undefined ? {} : { DATABASE_URL: store_url.href }),
    ...(nats_url !== undefined && { NATS_URL: nats_url }),
    ...env,
  };
  const start = (args: string[], more: Record<string, string>) => {
    const program = flotilla(args, { HOME: dir, ...more }, node_options);
    programs.push(program);
    return program;
  };
  const plane = await startPlane(start, settings, await freePort());

  const world: World = {
    dir,
    database_url: database?.url,
    store_link,
    plane,
    replica: async (more = {}) => startPlane(start, { ...settings, ...more }, await freePort()),
    async node(options) {
      const node = await startNode(plane, start, dir, options);
      if (options.unready !== true)
        await until(`${options.name} serves`, async () => serves(await node.view()));
      return node;
    },
    async backend(answer, models) {
      const backend = await startScriptedBackend(answer, models);
      closers.push(() => backend.close());
      return backend;
    },
    async proxy(port) {
      const proxy = await startProxy({ port });
      closers.push(() => proxy.close());
      return proxy;
    },
    async key(body = {}) {
      const { key } = await plane.send<{ key: string }>('POST', '/api/v1/keys', { name: 'test', ...body });
      return key;
    },
    nodes: async () => (await plane.get<{ data: NodeView[] }>('/api/v1/nodes')).data,
    usage: async () => (await plane.get<{ data: UsageRow[] }>('/api/v1/usage?limit=500')).data,
    async close() {
      // The store's hop goes with the backends: a control plane must end without its store as well.
      for (const close of closers) await close();
      await Promise.all(programs.map((program) => program.stop()));
      await database?.drop();
      await rm(dir, { recursive: true, force: true });
    },
  };
  return world;
}

type Start = (args: string[], env: Record<string, string>) => Program;

async function startPlane(start: Start, settings: Record<string, string>, port: number): Promise<Plane> {
  const url = `http://127.0.0.1:${port}`;
  const runs: Program[] = [];
  const run = async () => {
    const program = start(['control'], { ...settings, FLOTILLA_PORT: String(port) });
    runs.push(program);
    await until(
      'the control plane is ready',
      async () => {
        const { exitCode, signalCode } = program.child;
        if (exitCode !== null || signalCode !== null)
          throw new Error(`It ended at once:\n${program.output()}`);
        return fetch(`${url}/readyz`)
          .then((reply) => reply.ok)
          .catch(() => false);
      },
      60_000,
    );
  };
  await run();
  const send = async <T>(method: string, path: string, body?: unknown, key = ADMIN_KEY): Promise<T> => {
    const reply = await fetch(`${url}${path}`, {
      method,
      headers: {
        authorization: `Bearer ${key}`,
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const text = await reply.text();
    if (!reply.ok) throw new Error(`${method} ${path}: ${reply.status} ${text}`);
    return (text === '' ? undefined : JSON.parse(text)) as T;
  };
  return {
    url,
    port,
    admin_key: ADMIN_KEY,
    program: () => runs.at(-1)!,
    output: () => runs.map((program) => program.output()).join(''),
    get: (path, key) => send('GET', path, undefined, key),
    send,
    async linked() {
      const { replica } = await send<{ replica: string }>('GET', '/readyz');
      const { data } = await send<{ data: NodeView[] }>('GET', '/api/v1/nodes');
      return data.flatMap((node) => (node.replica === replica ? [node.id] : []));
    },
    chat: (body, { key = ADMIN_KEY, headers, ...init } = {}) =>
      fetch(`${url}/v1/chat/completions`, {
        method: 'POST',
        headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json', ...headers },
        body: JSON.stringify({ model: 'scripted', messages: [{ role: 'user', content: 'Hello' }], ...body }),
        ...init,
      }),
    async restart(more = {}) {
      await runs.at(-1)!.stop();
      Object.assign(settings, more);
      await run();
    },
  };
}

async function startNode(plane: Plane, start: Start, dir: string, options: NodeOptions): Promise<TestNode> {
  const state_dir = join(dir, `node-${options.name}`);
  await mkdir(state_dir, { recursive: true });
  const backends = options.backends.map((backend) => ({ probe: 'list', ...backend }));
  await writeFile(join(state_dir, 'node.yaml'), JSON.stringify({ find_backends: false, backends }));
  const { token } = await plane.send<{ token: string }>(
    'POST',
    '/api/v1/enrolment-tokens',
    options.token ?? {},
  );
  const env = { FLOTILLA_NODE_STATE_DIR: state_dir, FLOTILLA_NODE_STATUS_PORT: '0', ...options.env };
  const args = [
    'join',
    options.control_url ?? plane.url,
    '--token',
    token,
    '--name',
    options.name,
    '--state-dir',
    state_dir,
  ];
  const runs = [start(args, env)];
  const view = async (): Promise<NodeView | undefined> => {
    const { data } = await plane.get<{ data: NodeView[] }>('/api/v1/nodes?limit=500');
    return data.find((node) => node.name === options.name);
  };
  const { id } = await until(`${options.name} is enrolled`, async () => {
    const program = runs[0]!;
    if (program.child.exitCode !== null) throw new Error(`The daemon ended at once:\n${program.output()}`);
    return view();
  });
  return {
    id,
    name: options.name,
    state_dir,
    token,
    program: () => runs.at(-1)!,
    output: () => runs.map((program) => program.output()).join(''),
    view: () => plane.get<NodeView>(`/api/v1/nodes/${id}`),
    async restart() {
      await runs.at(-1)!.stop();
      runs.push(start(['node', 'run', '--state-dir', state_dir], env));
    },
  };
}

function serves(node: NodeView): boolean {
  return (
    node.state === 'online' &&
    node.backends.length > 0 &&
    node.backends.every((backend) => backend.health === 'healthy')
  );
}
