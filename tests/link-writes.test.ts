import { randomFillSync } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { WebSocket, WebSocketServer } from 'ws';
import { linkWrites } from '../packages/core/src/link-writes.ts';

/** What one end writes beside its WebSocket, the other end's WebSocket reads. */
type Sent = string | Uint8Array;

const http = createServer();
const server = new WebSocketServer({ server: http, maxPayload: 1024 * 1024 });
let accepted: WebSocket;
let dialled: WebSocket;
const below = { server: null as NodeJS.WritableStream | null, client: null as NodeJS.WritableStream | null };

beforeAll(async () => {
  http.listen(0, '127.0.0.1');
  await once(http, 'listening');
  http.on('upgrade', (request: IncomingMessage) => (below.server = request.socket));
  const connection = once(server, 'connection');
  dialled = new WebSocket(`ws://127.0.0.1:${(http.address() as AddressInfo).port}`, {
    maxPayload: 1024 * 1024,
  });
  dialled.on('upgrade', (response) => (below.client = response.socket));
  [accepted] = (await connection) as [WebSocket];
  if (dialled.readyState !== WebSocket.OPEN) await once(dialled, 'open');
});
afterAll(() => {
  dialled.terminate();
  server.close();
  http.close();
});

const ends = {
  'a server': { from: () => below.server!, to: () => dialled, mask: null },
  'a client that masks by zero': {
    from: () => below.client!,
    to: () => accepted,
    mask: (key: Uint8Array) => void key.fill(0),
  },
  'a client that masks by chance': { from: () => below.client!, to: () => accepted, mask: randomFillSync },
};

async function received(socket: WebSocket, count: number): Promise<Sent[]> {
  const read: Sent[] = [];
  const { promise, resolve } = Promise.withResolvers<void>();
  const take = (data: Buffer, binary: boolean) => {
    read.push(binary ? new Uint8Array(data) : data.toString());
    if (read.length === count) resolve();
  };
  socket.on('message', take);
  await promise;
  socket.off('message', take);
  return read;
}

const HEADER = Uint8Array.of(1, 2, 3);

/** Each binary message in two parts, as frames come with their header. */
function whole(message: Sent): Sent {
  return typeof message === 'string' ? message : new Uint8Array(Buffer.concat([HEADER, message]));
}

describe.each(Object.entries(ends))('%s', (_, end) => {
  function open() {
    const sizes: number[] = [];
    const turn = Promise.withResolvers<() => void>();
    const writes = linkWrites({
      write(bytes) {
        sizes.push(bytes.byteLength);
        end.from().write(bytes);
      },
      turnEnd: turn.resolve,
      mask: end.mask,
    });
    const send = (message: Sent) =>
      typeof message === 'string' ? writes.text(message) : writes.binary(HEADER, message);
    return { sizes, writes, send, turnOver: async () => (await turn.promise)() };
  }

  test('is read as it was sent, in its order, whatever is sent in a turn', async () => {
    const message = fc.oneof(
      fc.string({ unit: 'grapheme', maxLength: 300 }),
      fc.uint8Array({ maxLength: 300 }),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(message, { minLength: 1, maxLength: 80 }), async (messages) => {
        const read = received(end.to(), messages.length);
        const { send, turnOver } = open();
        for (const one of messages) send(one);
        await turnOver();
        expect(await read).toEqual(messages.map(whole));
      }),
      { numRuns: 50 },
    );
  });

  test.each([125, 126, 65_535, 65_536, 200_000])('sends %i bytes as one message', async (length) => {
    const messages = ['x'.repeat(length), new Uint8Array(length - HEADER.length).fill(7)];
    const read = received(end.to(), 2);
    const { send, turnOver } = open();
    for (const one of messages) send(one);
    await turnOver();
    expect(await read).toEqual(messages.map(whole));
  });

  test('writes once in a turn, after each 32 messages, and when a quarter of a megabyte waits', async () => {
    const read = received(end.to(), 65 + 2);
    const { sizes, send, writes, turnOver } = open();
    for (let n = 0; n < 65; n++) send(`message ${n}`);
    expect(sizes).toHaveLength(2);
    await turnOver();
    expect(sizes).toHaveLength(3);
    send(new Uint8Array(300 * 1024));
    expect(sizes).toHaveLength(4);
    send('the last');
    writes.flush();
    writes.flush();
    expect(sizes).toHaveLength(5);
    expect((await read).slice(0, 65)).toEqual(Array.from({ length: 65 }, (_, n) => `message ${n}`));
  });
});
