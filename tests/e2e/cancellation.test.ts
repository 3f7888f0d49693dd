import { connect, type Socket } from 'node:net';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { chatChunk, type Handler, type ScriptedBackend, SSE } from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';
import { type TestNode, type World, openWorld } from '../support/world.ts';

/** Promise P5: a client that goes away frees the backend and the slot within 500 ms, in every phase. */
let world: World;
let backend: ScriptedBackend;
let node: TestNode;
let proxy: Awaited<ReturnType<World['proxy']>>;
const WITHIN_MS = 500;
const silent: Handler = () => undefined;

beforeAll(async () => {
  world = await openWorld({ env: { FLOTILLA_CLIENT_STALL_TIMEOUT_MS: '1000' } });
  proxy = await world.proxy(world.plane.port);
  backend = await world.backend(silent);
  node = await world.node({
    name: 'box',
    backends: [{ url: backend.url, slots: 1 }],
    control_url: proxy.url,
  });
});
afterAll(() => world.close());

/** A client of our own, so that it can leave exactly as we say. */
function client(body: Record<string, unknown>): Socket {
  const text = JSON.stringify({ model: 'scripted', messages: [{ role: 'user', content: 'x' }], ...body });
  const socket = connect(world.plane.port, '127.0.0.1');
  socket.on('error', () => undefined);
  socket.write(
    `POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${world.plane.admin_key}\r\n` +
      `content-type: application/json\r\ncontent-length: ${Buffer.byteLength(text)}\r\n\r\n${text}`,
  );
  return socket;
}

const leave = {
  RST: (socket: Socket) => socket.resetAndDestroy(),
  FIN: (socket: Socket) => socket.end(),
};
const reserved = async () => (await node.view()).pools[0]!.reserved;
const openJobs = async () => {
  const { data } = await world.plane.get<{ data: { finished_at: string | null }[] }>('/api/v1/jobs?limit=50');
  return data.filter((job) => job.finished_at === null).length;
};

async function freed(left_ms: number, request = backend.requests.at(-1)!): Promise<void> {
  await until('the backend is free', () => request.aborted_ms);
  expect(request.aborted_ms! - left_ms).toBeLessThan(WITHIN_MS);
  await until('the slot is free', async () => (await reserved()) === 0);
  expect(performance.now() - left_ms).toBeLessThan(WITHIN_MS + 100);
}

describe.each(['RST', 'FIN'] as const)('a client that leaves with %s', (how) => {
  it('while it is queued never reaches a backend', async () => {
    const first = client({});
    await until('the slot is taken', () => backend.in_flight === 1);
    const second = client({});
    await until('the second waits', async () => (await openJobs()) === 2);
    const seen = backend.requests.length;
    const left_ms = performance.now();
    leave[how](second);
    await until('it is gone', async () => (await openJobs()) === 1);
    expect(performance.now() - left_ms).toBeLessThan(WITHIN_MS);
    leave[how](first);
    await freed(performance.now());
    expect(backend.requests).toHaveLength(seen);
  });

  it('while it is offered', async () => {
    // The node hears of the offer and of its end in one go: between them the network is silent.
    proxy.blackhole();
    const socket = client({});
    await until('it is offered', async () => (await reserved()) === 1);
    const left_ms = performance.now();
    leave[how](socket);
    await until('the control plane has let go', async () => (await openJobs()) === 0);
    expect(performance.now() - left_ms).toBeLessThan(WITHIN_MS);
    const restored_ms = performance.now();
    proxy.restore();
    await until('the slot is free', async () => (await reserved()) === 0);
    expect(performance.now() - restored_ms).toBeLessThan(WITHIN_MS);
    await until('the backend is idle', () => backend.in_flight === 0);
  });

  it('before the first byte', async () => {
    const socket = client({ stream: true });
    await until('it runs', () => backend.in_flight === 1);
    const left_ms = performance.now();
    leave[how](socket);
    await freed(left_ms);
  });

  it('in mid-stream', async () => {
    backend.answer = (_request, response) => {
      response.writeHead(200, SSE);
      response.write(chatChunk('hello'));
    };
    const socket = client({ stream: true });
    await until('it has a piece', () => read(socket));
    const left_ms = performance.now();
    leave[how](socket);
    await freed(left_ms);
    backend.answer = silent;
  });

  it('during a non-streaming answer', async () => {
    backend.answer = (_request, response) => {
      response.writeHead(200, { 'content-type': 'application/json' });
      response.write('{"choices":[');
    };
    const socket = client({});
    await until('it runs', () => backend.in_flight === 1);
    const left_ms = performance.now();
    leave[how](socket);
    await freed(left_ms);
    backend.answer = silent;
  });
});

describe('a client that stops reading', () => {
  it('is cut off, and starves nobody meanwhile', async () => {
    const other = await world.backend(
      (_request, response) => {
        response.writeHead(200, { 'content-type': 'application/json' }).end('{"choices":[]}');
      },
      ['other'],
    );
    await world.node({ name: 'other', backends: [{ url: other.url, slots: 4 }] });
    backend.answer = (_request, response) => {
      response.writeHead(200, SSE);
      const more = () => {
        while (!response.destroyed && response.write(chatChunk('x'.repeat(100_000))));
      };
      response.on('drain', more);
      more();
    };
    const socket = client({ stream: true });
    socket.pause();
    await until('it runs', () => backend.in_flight === 1);
    const stalled_ms = performance.now();
    for (let index = 0; index < 10; index++) {
      const began = performance.now();
      const reply = await world.plane.chat({ model: 'other' });
      expect(reply.status).toBe(200);
      expect(performance.now() - began).toBeLessThan(500);
    }
    await until('it is cut off', () => backend.requests.at(-1)!.aborted_ms);
    expect(performance.now() - stalled_ms).toBeGreaterThan(500);
    socket.destroy();
    await until('the slot is free', async () => (await reserved()) === 0);
    backend.answer = silent;
  });
});

function read(socket: Socket): boolean {
  socket.resume();
  return socket.bytesRead > 0;
}
