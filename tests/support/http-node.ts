import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { LeaseMessage, NodeLeaseAnswer, NodeRegisterAnswer } from '@flotilla/protocol';
import type { World } from './world.ts';

/** A node over plain HTTP of which the test makes every call itself. */
export interface RawHttpNode {
  readonly id: string;
  readonly credential: string;
  /** Begins a session; further calls are of it. */
  register(more?: Record<string, unknown>): Promise<NodeRegisterAnswer>;
  session: string;
  /** One call of the session, as it is answered. */
  call(path: string, init?: CallInit): Promise<Called>;
  lease(ack?: number, wait_ms?: number): Promise<NodeLeaseAnswer>;
  /** Leases, acknowledging everything, until there is a message of this type. */
  next<T extends LeaseMessage['type']>(type: T): Promise<Extract<LeaseMessage, { type: T }>>;
  /** Beats until it is called. */
  beats(every_ms: number): () => void;
}

interface CallInit {
  method?: string;
  /** An object is sent as JSON, anything else as it is. */
  body?: unknown;
  query?: Record<string, string | number>;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

interface Called {
  status: number;
  text: string;
  json: Record<string, never> & { error: { code: string; message: string; param: string | null } };
}

async function enrol(world: World, name: string): Promise<{ id: string; credential: string }> {
  const { token } = await world.plane.send<{ token: string }>('POST', '/api/v1/enrolment-tokens', {
    labels: { http: name },
  });
  return world.plane.send('POST', '/node/v1/enrol', { token, name });
}

/** It serves one model, of its own name. */
export async function enrolHttpNode(world: World, name: string): Promise<RawHttpNode> {
  const { id, credential } = await enrol(world, name);
  let boots = 0;
  let acknowledged = 0;
  const node: RawHttpNode = {
    id,
    credential,
    session: '',
    async register(more = {}) {
      const body = { boot_id: `boot-${name}-${++boots}`, models: [name], slots: 4, ...more };
      const { status, text, json } = await node.call('register', { body });
      if (status !== 200) throw new Error(`register: ${status} ${text}`);
      const answer = json as unknown as NodeRegisterAnswer;
      node.session = answer.session;
      acknowledged = 0;
      return answer;
    },
    async call(path, { method = 'POST', body, query = {}, headers, signal } = {}) {
      const url = new URL(`${world.plane.url}/node/v1/${path}`);
      url.searchParams.set('session', node.session);
      for (const [key, value] of Object.entries(query)) url.searchParams.set(key, String(value));
      const plain = typeof body === 'string' || body instanceof Uint8Array || body instanceof ReadableStream;
      const reply = await fetch(url, {
        method,
        headers: {
          authorization: `Bearer ${credential}`,
          ...(body !== undefined && !plain && { 'content-type': 'application/json' }),
          ...headers,
        },
        ...(body !== undefined && { body: plain ? (body as string) : JSON.stringify(body) }),
        ...(body instanceof ReadableStream && { duplex: 'half' }),
        ...(signal !== undefined && { signal }),
      });
      const text = await reply.text();
      return { status: reply.status, text, json: text.startsWith('{') ? JSON.parse(text) : {} };
    },
    async lease(ack = acknowledged, wait_ms = 10_000) {
      const { status, text, json } = await node.call('lease', { query: { ack, wait_ms } });
      if (status !== 200) throw new Error(`lease: ${status} ${text}`);
      return json as unknown as NodeLeaseAnswer;
    },
    async next(type) {
      for (;;) {
        const { ack, messages } = await node.lease();
        acknowledged = ack;
        const found = messages.find((message) => message.type === type);
        if (found !== undefined) {
          await node.lease(ack, 0);
          return found as never;
        }
      }
    },
    beats(every_ms) {
      const timer = setInterval(() => {
        node.call('heartbeat', { body: {} }).catch(() => undefined);
      }, every_ms);
      return () => clearInterval(timer);
    },
  };
  return node;
}

/** The node that docs/guides/write-a-node.md shows, taken from there and run. */
export interface ShellNode {
  /** Once it is enrolled. */
  readonly id: () => Promise<string | undefined>;
  readonly child: ChildProcess;
  output(): string;
  readonly ended: Promise<number | null>;
  close(): Promise<void>;
}

export async function shellScript(): Promise<string> {
  const guide = await readFile(new URL('../../docs/guides/write-a-node.md', import.meta.url), 'utf8');
  const script = /^```sh\n(#!\/bin\/sh\n[\s\S]*?)^```$/m.exec(guide)?.[1];
  if (script === undefined) throw new Error('The guide shows no node.');
  return script;
}

/** @param kept a credential of an earlier start, and where it goes with it */
export async function startShellNode(
  world: World,
  name: string,
  backend_url: string,
  kept?: { credential: string; url: string },
): Promise<ShellNode> {
  const dir = await mkdtemp(join(tmpdir(), 'flotilla-shell-'));
  const { token } = await world.plane.send<{ token: string }>('POST', '/api/v1/enrolment-tokens', {});
  await writeFile(join(dir, 'node.sh'), await shellScript());
  if (kept !== undefined) await writeFile(join(dir, 'flotilla-node.credential'), kept.credential);
  let output = '';
  const child = spawn('sh', ['node.sh'], {
    cwd: dir,
    // Its own group, so that nothing of it outlives the test.
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: {
      PATH: process.env['PATH'],
      TMPDIR: dir,
      FLOTILLA_URL: kept?.url ?? world.plane.url,
      FLOTILLA_TOKEN: token,
      NODE_NAME: name,
      BACKEND_URL: backend_url,
      SLOTS: '2',
    },
  });
  for (const stream of [child.stdout!, child.stderr!]) stream.on('data', (text) => (output += String(text)));
  const ended = new Promise<number | null>((resolve) => child.once('exit', (code) => resolve(code)));
  return {
    id: async () => (await world.nodes()).find((node) => node.name === name)?.id,
    child,
    output: () => output,
    ended,
    async close() {
      try {
        process.kill(-child.pid!, 'SIGKILL');
      } catch {
        // It has ended by itself.
      }
      await ended;
      await rm(dir, { recursive: true, force: true });
    },
  };
}
