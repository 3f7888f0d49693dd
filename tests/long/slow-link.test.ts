import { createHash } from 'node:crypto';
import type { ServerResponse } from 'node:http';
import { connect, type Socket } from 'node:net';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  chatAnswer,
  chatChunk,
  DONE,
  type ScriptedBackend,
  type SeenRequest,
  SSE,
} from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';
import { type TestNode, type World, openWorld } from '../support/world.ts';

/** What a node's output does to its beats, to control messages and to other work when the line, or a client, is slow. */
const bodyOf = ({ body }: SeenRequest) => JSON.parse(body.toString()) as { user: string; stream?: boolean };
const hashOf = (body: Uint8Array) => createHash('sha256').update(body).digest('hex');
const streaming = (user: string) => ({ user, stream: true, stream_options: { include_usage: false } });

/** Writes without end, as fast as anybody takes it. */
function flood(response: ServerResponse): void {
  const piece = chatChunk('x'.repeat(64_000));
  response.writeHead(200, SSE);
  const more = () => {
    while (!response.destroyed && response.write(piece));
  };
  response.on('drain', more);
  more();
}

/** Everything a node's view says while something is under way. */
function watch(node: TestNode, is_over: () => boolean) {
  const states = new Set<string>();
  const epochs = new Set<number>();
  const beats = new Set<string | null>();
  let missed = 0;
  const watched = until(
    'all of it is over',
    async () => {
      const view = await node.view();
      states.add(view.state);
      epochs.add(view.epoch);
      beats.add(view.last_seen_at);
      missed = Math.max(missed, view.why.missed_beats);
      return is_over();
    },
    60_000,
  );
  return watched.then(() => ({ states: [...states], epochs: epochs.size, beats: beats.size, missed }));
}

describe('a line of 1 Mbit/s, full both ways', () => {
  const STREAMS = 16;
  const STREAM_BYTES = 120_000;
  const UPLOADS = 4;
  const UPLOAD_BYTES = 350_000;
  /** What the least window, 128 KiB, takes on this line, and a frame more. */
  const BEHIND_OUTPUT_MS = 1500;
  /** A stream gets a comment when it has waited 10 s; another one would come 10 s later. */
  const SECOND_COMMENT_MS = 20_500;
  const held = new Map<string, ServerResponse>();
  let world: World;
  let backend: ScriptedBackend;
  let node: TestNode;

  beforeAll(async () => {
    world = await openWorld({ heartbeat_ms: 5000 });
    const proxy = await world.proxy(world.plane.port);
    backend = await world.backend((request, response) => {
      const { user, stream } = bodyOf(request);
      if (stream !== true) {
        response.setHeader('content-type', 'application/json');
        response.end(chatAnswer(hashOf(request.body)));
      } else if (user.startsWith('endless')) flood(response);
      else if (user === 'late') held.set(user, response);
      else response.writeHead(200, SSE).end(textOf(user));
    });
    node = await world.node({
      name: 'far',
      backends: [{ url: backend.url, slots: 32 }],
      control_url: proxy.url,
    });
    proxy.limit(1_000_000);
  }, 60_000);
  afterAll(() => world.close());

  it('costs no beat, no byte and no second attempt, and cancels overtake what is waiting', async () => {
    let over = false;
    const watched = watch(node, () => over);
    const late = lateStream();
    const streams = Array.from({ length: STREAMS }, (_, index) => wholeStream(`stream-${index}`));
    const uploads = Array.from({ length: UPLOADS }, (_, index) => upload(`upload-${index}`));

    const cancelled_ms: number[] = [];
    for (const user of ['endless-1', 'endless-2']) cancelled_ms.push(await cancelInMidStream(user));
    const uploaded = await Promise.race([Promise.all(uploads), Promise.resolve('under way')]);
    expect(uploaded).toBe('under way');
    expect(Math.max(...cancelled_ms)).toBeLessThan(BEHIND_OUTPUT_MS);

    await Promise.all([...streams, ...uploads, late]);
    expect(backend.requests).toHaveLength(STREAMS + UPLOADS + 3);
    over = true;
    const seen = await watched;
    expect(seen).toMatchObject({ states: ['online'], epochs: 1, missed: 0 });
    expect(seen.beats).toBeGreaterThan(3);
    await until('every slot is free', async () => (await node.view()).pools[0]!.reserved === 0);
  }, 60_000);

  function textOf(user: string): string {
    let text = '';
    for (let index = 0; text.length < STREAM_BYTES; index++)
      text += chatChunk(`${user} ${index} ${'x'.repeat(800)}`);
    return text + DONE;
  }

  async function wholeStream(user: string): Promise<void> {
    const reply = await world.plane.chat(streaming(user));
    expect(reply.headers.get('x-flotilla-attempts')).toBe('1');
    const text = await reply.text();
    expect(text.replace(/^(?:: .*\n\n)*/, '') === textOf(user), `${user} is whole`).toBe(true);
  }

  async function upload(user: string): Promise<void> {
    const body = JSON.stringify({
      model: 'scripted',
      messages: [],
      user,
      more: 'é'.repeat(UPLOAD_BYTES / 2),
    });
    const reply = await world.plane.chat({}, { body });
    expect(reply.headers.get('x-flotilla-attempts')).toBe('1');
    expect(await reply.text()).toBe(chatAnswer(hashOf(Buffer.from(body))));
  }

  /** @returns how long the backend went on working for nobody */
  async function cancelInMidStream(user: string): Promise<number> {
    const abort = new AbortController();
    const reply = await world.plane.chat(streaming(user), { signal: abort.signal });
    await reply.body!.getReader().read();
    const request = backend.requests.find((one) => bodyOf(one).user === user)!;
    const left_ms = performance.now();
    abort.abort();
    return (await until('the backend is free', () => request.aborted_ms)) - left_ms;
  }

  /** Gets a comment while it waits; from its first byte on there is none, least of all inside an event. */
  async function lateStream(): Promise<void> {
    const asked_ms = performance.now();
    const reply = await world.plane.chat(streaming('late'));
    const reader = reply.body!.getReader();
    const comment = new TextDecoder().decode((await reader.read()).value);
    expect(comment).toMatch(/^: .*\n\n$/);
    const response = held.get('late')!;
    const event = chatChunk('late');
    response.writeHead(200, SSE).write(event.slice(0, 40));
    await until('it would have got another', () => performance.now() > asked_ms + SECOND_COMMENT_MS, 30_000);
    response.end(event.slice(40) + DONE);
    let text = '';
    for (let part = await reader.read(); !part.done; part = await reader.read())
      text += new TextDecoder().decode(part.value);
    expect(text).toBe(event + DONE);
  }
});

describe('a backend that floods a stream whose client reads slowly', () => {
  /** What sockets, windows and a piece in each hand may hold between the two ends. */
  const UNDER_WAY_MOST_BYTES = 24 * 1024 * 1024;
  const EVENTS = 150;
  let world: World;
  let backend: ScriptedBackend;
  let node: TestNode;
  const held = new Map<string, ServerResponse>();

  beforeAll(async () => {
    world = await openWorld({ heartbeat_ms: 500 });
    backend = await world.backend((request, response) => {
      const { user } = bodyOf(request);
      held.set(user, response);
      if (user === 'flood') flood(response);
      else response.writeHead(200, SSE);
    });
    node = await world.node({ name: 'near', backends: [{ url: backend.url, slots: 4 }] });
  }, 60_000);
  afterAll(() => world.close());

  it('delays no beat and no other stream, and is itself held back', async () => {
    const slow = slowClient(streaming('flood'));
    await until('it has begun', () => slow.bytesRead > 0);
    let over = false;
    const watched = watch(node, () => over);

    const pending = world.plane.chat(streaming('other'));
    const response = await until('the other one runs', () => held.get('other'));
    response.write(chatChunk('begin'));
    const reader = (await pending).body!.getReader();
    await reader.read();
    const delays: number[] = [];
    for (let index = 0; index < EVENTS; index++) {
      const sent_ms = performance.now();
      response.write(chatChunk(`${index}`));
      await reader.read();
      delays.push(performance.now() - sent_ms);
      await until('it is time for the next', () => performance.now() >= sent_ms + 30);
    }
    over = true;
    const seen = await watched;
    response.end(DONE);
    expect(seen).toMatchObject({ states: ['online'], epochs: 1, missed: 0 });
    expect(seen.beats).toBeGreaterThan(6);
    delays.sort((a, b) => a - b);
    expect(delays[Math.floor(EVENTS / 2)]).toBeLessThan(20);
    expect(delays.at(-1)).toBeLessThan(500);
    const from_backend = held.get('flood')!.socket!.bytesWritten;
    expect(from_backend - slow.bytesRead).toBeLessThan(UNDER_WAY_MOST_BYTES);
    slow.destroy();
    await until('the backend is free', () => backend.requests[0]!.aborted_ms);
  });

  /** Takes 64 KiB at most every 50 ms. */
  function slowClient(body: Record<string, unknown>): Socket {
    const text = JSON.stringify({ model: 'scripted', messages: [], ...body });
    const socket = connect(world.plane.port, '127.0.0.1');
    socket.on('error', () => undefined);
    socket.write(
      `POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${world.plane.admin_key}\r\n` +
        `content-type: application/json\r\ncontent-length: ${Buffer.byteLength(text)}\r\n\r\n${text}`,
    );
    socket.on('data', () => {
      socket.pause();
      setTimeout(() => socket.resume(), 50);
    });
    return socket;
  }
});
