import { type ControlMessageOf, encodeFrame, type NodeView } from '@flotilla/protocol';
import { connect, type Socket } from 'node:net';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { rawHttp } from '../support/raw-http.ts';
import { bodyOf, enrolRawNode, type RawLink, type RawNode, rawRegistration } from '../support/raw-node.ts';
import { type Bystander, type BystanderStream, startBystander } from '../support/bystander.ts';
import { chatChunk } from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';
import { type World, openWorld } from '../support/world.ts';

/**
 * What nobody should send, on every surface. Each is refused in the one shape, the process lives, and a stream of an
 * innocent client that runs meanwhile arrives whole.
 */
let world: World;
let bystander: Bystander;
let innocent: BystanderStream;
const slow: { socket: Socket; said: string; closed: boolean }[] = [];
type Offer = ControlMessageOf<'job.offer'>;
const BODY_LIMIT_BYTES = 1024 * 1024;
const NESTED = 100_000;

beforeAll(async () => {
  world = await openWorld({
    // A flood takes the control plane's time too: at most so much of it that nobody's lease of 3 H ends.
    heartbeat_ms: 2000,
    env: { FLOTILLA_BODY_LIMIT_BYTES: String(BODY_LIMIT_BYTES), FLOTILLA_CLIENT_STALL_TIMEOUT_MS: '2000' },
  });
  bystander = await startBystander(world);
  for (let index = 0; index < 20; index++) slow.push(slowClient());
}, 60_000);
afterAll(() => world.close());
beforeEach(async () => {
  innocent = await bystander.stream();
});
afterEach(async () => {
  await innocent.end();
  if (world.plane.program().child.exitCode !== null) throw new Error(world.plane.output());
});

/** Headers that never end, a line every now and then. */
function slowClient(): (typeof slow)[number] {
  const client = { socket: connect(world.plane.port, '127.0.0.1'), said: '', closed: false };
  const timer = setInterval(() => client.socket.write('x-slow: 1\r\n'), 200);
  client.socket.on('error', () => undefined);
  client.socket.on('data', (part) => (client.said += part.toString()));
  client.socket.on('close', () => {
    client.closed = true;
    clearInterval(timer);
  });
  client.socket.write('POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n');
  return client;
}

const nested = (depth = NESTED) => '['.repeat(depth) + ']'.repeat(depth);

/** `<status> <code>`, once the answer has the shape that every refusal has. */
function shapeOf(status: number, text: string): string {
  const { error } = JSON.parse(text) as { error: Record<string, unknown> };
  expect(Object.keys(error)).toEqual(expect.arrayContaining(['message', 'type', 'code', 'param']));
  expect(error['message']).toMatch(/\S/);
  expect(error['type']).toMatch(/^\w+$/);
  return `${status} ${String(error['code'])}`;
}

async function post(
  path: string,
  body: string | Uint8Array<ArrayBuffer>,
  headers: Record<string, string> = {},
) {
  const reply = await fetch(`${world.plane.url}${path}`, {
    method: 'POST',
    headers: {
      authorization: `Bearer ${world.plane.admin_key}`,
      'content-type': 'application/json',
      ...headers,
    },
    body,
  });
  return shapeOf(reply.status, await reply.text());
}

describe('over HTTP', () => {
  const chat = '/v1/chat/completions';
  const messages = '"messages":[]';
  it.each([
    ['no JSON', chat, '{"model":', '400 invalid_request'],
    ['nothing', chat, '', '400 invalid_request'],
    ['a list', chat, '[]', '400 invalid_request'],
    ['a model that is a number', chat, `{"model":1,${messages}}`, '400 invalid_request'],
    ['a model without a name', chat, `{"model":"",${messages}}`, '400 invalid_request'],
    ['a model with NUL in its name', chat, `{"model":"a\\u0000b",${messages}}`, '404 model_not_found'],
    ['half a surrogate in a name', chat, `{"model":"\\ud800",${messages}}`, '404 model_not_found'],
    ['messages that are text', chat, '{"model":"bystander","messages":"x"}', '400 invalid_request'],
    [
      'a stream that is a word',
      chat,
      `{"model":"bystander","stream":"yes",${messages}}`,
      '400 invalid_request',
    ],
    ['brackets, unclosed', chat, '['.repeat(NESTED), '400 invalid_request'],
    ['brackets, closed', chat, nested(), '400 invalid_request'],
    ['brackets in the model', chat, `{"model":${nested()},${messages}}`, '400 invalid_request'],
    [
      'objects in objects',
      '/api/v1/keys',
      '{"a":'.repeat(NESTED) + '1' + '}'.repeat(NESTED),
      '400 invalid_request',
    ],
    ['brackets in a name', '/api/v1/keys', `{"name":${nested()}}`, '400 invalid_request'],
    ['brackets in labels', '/api/v1/enrolment-tokens', `{"labels":${nested()}}`, '400 invalid_request'],
    ['brackets at enrolment', '/node/v1/enrol', `{"token":${nested()},"name":"x"}`, '400 invalid_request'],
    [
      'a prototype in a record',
      '/api/v1/keys',
      '{"name":"x","node_labels":{"__proto__":"gpu"}}',
      '400 invalid_request',
    ],
    ['a prototype', '/api/v1/keys', '{"name":"x","__proto__":{"role":"admin"}}', '400 invalid_request'],
    ['a huge number', '/api/v1/keys', '{"name":"x","concurrency":1e999}', '400 invalid_request'],
  ])('%s to %s', async (_what, path, body, expected) => {
    expect(await post(path, body)).toBe(expected);
  });

  it('invalid UTF-8 is refused, not replaced', async () => {
    const broken = (before: string, after: string) =>
      new Uint8Array(Buffer.concat([Buffer.from(before), Buffer.from([0xff, 0xc0]), Buffer.from(after)]));
    expect(await post(chat, broken('{"model":"bystander","messages":["', '"]}'))).toBe('400 invalid_request');
    expect(await post('/api/v1/keys', broken('{"name":"', '"}'))).toBe('400 invalid_request');
  });

  it.each([
    ['/api/v1/keys', '{"name":"a\\u0000b"}'],
    ['/api/v1/keys', '{"name":"a\\ud800b"}'],
    ['/api/v1/keys', '{"name":"a","allowed_models":["\\u0000"]}'],
    ['/api/v1/enrolment-tokens', '{"labels":{"a":"\\u0000"}}'],
  ])('what no store takes is refused: %s %s', async (path, body) => {
    expect(await post(path, body)).toBe('400 invalid_request');
  });

  it.each(['usage?model=%00', 'usage?key=%00', 'usage/summary?node=%00', 'jobs?model=%00', 'jobs?after=%00'])(
    'NUL in a query is no fault of ours: %s',
    async (path) => {
      const reply = await fetch(`${world.plane.url}/api/v1/${path}`, {
        headers: { authorization: `Bearer ${world.plane.admin_key}` },
      });
      expect(shapeOf(reply.status, await reply.text())).toBe('400 invalid_request');
    },
  );

  it('bodies over the limit are refused, declared or not, before or while they come', async () => {
    const body = `{"model":"bystander","messages":["${'x'.repeat(2 * BODY_LIMIT_BYTES)}"]}`;
    expect(await post(chat, body)).toBe('413 payload_too_large');
    const head = `POST ${chat} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${world.plane.admin_key}\r\nconnection: close\r\n`;
    const declared = await rawHttp(world.plane.port, `${head}content-length: 99999999999\r\n\r\n`);
    expect(shapeOf(declared.status, declared.body)).toBe('413 payload_too_large');
    const chunk = `${BODY_LIMIT_BYTES.toString(16)}\r\n${'x'.repeat(BODY_LIMIT_BYTES)}\r\n`;
    const chunked = await rawHttp(
      world.plane.port,
      `${head}transfer-encoding: chunked\r\n\r\n`,
      chunk,
      chunk,
      '0\r\n\r\n',
    );
    expect(shapeOf(chunked.status, chunked.body)).toBe('413 payload_too_large');
  });

  it('a body that stops in the middle is given up', async () => {
    const stopped = await rawHttp(
      world.plane.port,
      `POST ${chat} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${world.plane.admin_key}\r\n` +
        'content-length: 100\r\nconnection: close\r\n\r\n{"model":',
    );
    expect(shapeOf(stopped.status, stopped.body)).toBe('408 invalid_request');
  });

  const close = 'connection: close\r\n\r\n';
  it.each([
    ['noise', '\0\u0001\u0002noise\r\n\r\n', '400 invalid_request'],
    [
      'a TLS greeting',
      Buffer.concat([Buffer.from('16030100a5010000a10303', 'hex'), Buffer.alloc(100)]),
      '400 invalid_request',
    ],
    ['an HTTP/2 preface', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', '400 invalid_request'],
    ['HTTP/3.0', 'GET / HTTP/3.0\r\n\r\n', '400 invalid_request'],
    [
      'a length below zero',
      'POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n',
      '400 invalid_request',
    ],
    [
      'two lengths',
      'POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n',
      '400 invalid_request',
    ],
    [
      'a chunk without a size',
      'POST /v1/models HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n',
      '400 invalid_request',
    ],
    ['NUL in a header', 'GET / HTTP/1.1\r\nhost: x\r\nx-a: a\0b\r\n\r\n', '400 invalid_request'],
    [
      'a header with a space in its name',
      'GET / HTTP/1.1\r\nhost: x\r\nbad name: a\r\n\r\n',
      '400 invalid_request',
    ],
    [
      'a huge header',
      `GET /healthz HTTP/1.1\r\nhost: x\r\nx-a: ${'a'.repeat(20_000)}\r\n${close}`,
      '431 invalid_request',
    ],
    [
      'three thousand headers',
      `GET /healthz HTTP/1.1\r\nhost: x\r\n${'a: b\r\n'.repeat(3000)}${close}`,
      '431 invalid_request',
    ],
    ['a huge path', `GET /${'a'.repeat(20_000)} HTTP/1.1\r\nhost: x\r\n${close}`, '431 invalid_request'],
    ['a long path', `GET /${'a'.repeat(10_000)} HTTP/1.1\r\nhost: x\r\n${close}`, '404 not_found'],
    ['a path that climbs', `GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\n${close}`, '404 not_found'],
    [
      'half an encoded character',
      `GET /v1/models/%E0%A4%A HTTP/1.1\r\nhost: x\r\n${close}`,
      '400 invalid_request',
    ],
    ['no host', `GET /healthz HTTP/1.1\r\n${close}`, '400 invalid_request'],
    ['a method nobody knows', 'FROB / HTTP/1.1\r\nhost: x\r\n\r\n', '400 invalid_request'],
    ['a method not here', `PROPFIND /v1/models HTTP/1.1\r\nhost: x\r\n${close}`, '405 invalid_request'],
    ['the whole server', `OPTIONS * HTTP/1.1\r\nhost: x\r\n${close}`, '404 not_found'],
    ['a tunnel', 'CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\n\r\n', '405 invalid_request'],
    [
      'an expectation',
      `POST /v1/models HTTP/1.1\r\nhost: x\r\nexpect: the-unexpected\r\n${close}`,
      '417 invalid_request',
    ],
    [
      'an upgrade elsewhere',
      'GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n',
      '404 not_found',
    ],
    [
      'an upgrade by nobody',
      'GET /node/v1/link HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n',
      '401 unauthorized',
    ],
    ['noise after a request', 'GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n\0\0\r\n\r\n', '400 invalid_request'],
  ])('%s on the port', async (_what, bytes, expected) => {
    const { status, headers, body } = await rawHttp(world.plane.port, bytes);
    expect(shapeOf(status, body)).toBe(expected);
    expect(headers).toMatch(/^x-request-id: \S/m);
  });

  it('an offer of HTTP/2 is not taken up, and the request served', async () => {
    const reply = await rawHttp(
      world.plane.port,
      'GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings, close\r\nupgrade: h2c\r\nhttp2-settings: AAMA\r\n\r\n',
    );
    expect(reply.status).toBe(200);
  });
});

describe('the node link', () => {
  let node: RawNode;
  let link: RawLink;
  let key: string;

  beforeAll(async () => {
    node = await enrolRawNode(world, 'raw');
    key = await world.key({ node_labels: { raw: 'raw' } });
  });
  beforeEach(async () => {
    link = await node.join();
    link.beats(200);
  });
  afterEach(() => link.close());

  const view = () => world.plane.get<NodeView>(`/api/v1/nodes/${node.id}`);

  /** Asks for the raw node's model; every attempt at it is answered by `misbehave`. */
  async function askRaw(misbehave: (offer: Offer) => void, body: Record<string, unknown> = {}) {
    const seen = new Set<string>();
    const answering = setInterval(() => {
      for (const message of link.heard) {
        if (message.type !== 'job.offer' || seen.has(`${message.job} ${message.attempt}`)) continue;
        if (bodyOf(link, message.stream) === undefined) continue;
        seen.add(`${message.job} ${message.attempt}`);
        misbehave(message);
      }
    }, 2);
    const reply = await world.plane.chat({ model: 'raw', ...body }, { key });
    const text = await reply.text();
    clearInterval(answering);
    return { status: reply.status, headers: reply.headers, text };
  }

  it.each([
    ['no JSON', '{"type":', /not JSON/],
    ['a list', '[]', /JSON object/],
    ['a word', '"job.started"', /JSON object/],
    ['no type', '{}', /Unknown message type/],
    ['a type that is a number', '{"type":1}', /Unknown message type/],
    ['a type nobody knows', '{"type":"job.sing"}', /Unknown message type "job.sing"/],
    ['a type of objects', '{"type":"constructor"}', /Unknown message type/],
    ['brackets', nested(), /JSON object/],
    ['a job that is a number', '{"type":"job.started","job":1,"attempt":1}', /job.started: job/],
    ['an attempt that is a word', '{"type":"job.started","job":"j","attempt":"1"}', /job.started: attempt/],
    ['an attempt below one', '{"type":"job.started","job":"j","attempt":-1}', /job.started: attempt/],
    [
      'a result without usage',
      '{"type":"job.completed","job":"j","attempt":1,"result":{"status":200,"length":1}}',
      /usage/,
    ],
    [
      'a length below zero',
      '{"type":"job.completed","job":"j","attempt":1,"result":{"status":200,"length":-1},"usage":{"estimated":true}}',
      /length/,
    ],
    ['credit below zero', '{"type":"stream.credit","stream":-1,"acked_offset":0}', /stream/],
    ['an inventory that is text', '{"type":"inventory.sync","inventory":"all"}', /inventory/],
    ['a beat without a number', '{"type":"node.heartbeat"}', /seq/],
    ['a beat before the first', '{"type":"node.heartbeat","seq":-1}', /seq/],
    ['registering twice', rawRegistration('raw'), /registered already/],
  ])('%s is answered by an error, and the link lives on', async (_what, message, said) => {
    expect(await link.refused(message)).toMatch(said);
    link.beat();
    await link.next('node.heartbeat.ack');
  });

  it('an error carries the id of what it answers', async () => {
    const answer = link.next('error');
    link.send({ type: 'job.sing', id: 'm-1' });
    expect(await answer).toMatchObject({ id: 'm-1', code: 'invalid_request' });
  });

  it.each([
    ['empty', Buffer.alloc(0), /13 bytes/],
    ['too short', Buffer.alloc(12, 1), /13 bytes/],
    ['too long', Buffer.alloc(65_537, 3), /65536 bytes/],
    ['of kind 0', Buffer.from(encodeFrame(0 as never, 1, 0, Buffer.from('x'))), /kind 0/],
    ['of kind 9', Buffer.from(encodeFrame(9 as never, 1, 0, Buffer.from('x'))), /kind 9/],
    ['on a stream never opened', Buffer.from(encodeFrame(3, 4_000_000, 0, Buffer.from('x'))), /never opened/],
    ['on stream 0', Buffer.from(encodeFrame(3, 0, 0, Buffer.from('x'))), /never opened/],
    [
      'at an offset beyond 2^53',
      Buffer.concat([Buffer.from([3, 0, 0, 0, 1]), Buffer.alloc(8, 0xff)]),
      /2\^53/,
    ],
  ])('a binary frame %s is answered by an error, and the link lives on', async (_what, frame, said) => {
    expect(await link.refused(frame)).toMatch(said);
    link.beat();
    await link.next('node.heartbeat.ack');
  });

  it('a frame larger than any message closes the link, and only it', async () => {
    link.send(Buffer.alloc(300 * 1024));
    expect(await link.closed).toMatchObject({ code: 1009 });
  });

  it('a peer that breaks the rules a hundred times is cut off with the reason', async () => {
    for (let index = 0; index < 100; index++) link.send('{');
    expect(await link.closed).toMatchObject({ code: 4005, reason: expect.stringMatching(/100 broken/) });
    link = await node.join();
  });

  const head = (value: unknown) => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value));
  const json = { 'content-type': 'application/json' };
  const sse = { 'content-type': 'text/event-stream' };
  const usage = { estimated: true };
  const sound = (offer: Offer, body = '{}', headers: object = json) => {
    link.frame(2, offer.stream, 0, head({ status: 200, headers }));
    link.frame(3, offer.stream, 0, body);
    link.frame(4, offer.stream, Buffer.byteLength(body), Buffer.of(0));
    link.send({
      type: 'job.completed',
      job: offer.job,
      attempt: offer.attempt,
      result: { status: 200, length: Buffer.byteLength(body) },
      usage,
    });
  };

  it.each<[string, (offer: Offer) => void, RegExp]>([
    ['a body before its head', ({ stream }) => link.frame(3, stream, 0, 'x'), /missing/],
    [
      'a head that is no JSON',
      ({ stream }) => link.frame(2, stream, 0, 'HTTP/1.1 200'),
      /head .* unreadable/,
    ],
    ['a head that is a list', ({ stream }) => link.frame(2, stream, 0, '[200]'), /head .* unreadable/],
    ['a head of brackets', ({ stream }) => link.frame(2, stream, 0, nested(30_000)), /head .* unreadable/],
    ['a status of 99', ({ stream }) => link.frame(2, stream, 0, head({ status: 99 })), /head .* unreadable/],
    [
      'a status of 100',
      ({ stream }) => link.frame(2, stream, 0, head({ status: 100 })),
      /head .* unreadable/,
    ],
    [
      'a status that is text',
      ({ stream }) => link.frame(2, stream, 0, head({ status: '200' })),
      /head .* unreadable/,
    ],
    [
      'a hole in the body',
      ({ stream }) => {
        link.frame(2, stream, 0, head({ status: 200, headers: json }));
        link.frame(3, stream, 5, 'x');
      },
      /missing/,
    ],
    [
      'an end elsewhere',
      ({ stream }) => {
        link.frame(2, stream, 0, head({ status: 200, headers: json }));
        link.frame(4, stream, 7, Buffer.of(0));
      },
      /missing/,
    ],
    [
      'more after the end',
      ({ stream, job, attempt }) => {
        link.frame(2, stream, 0, head({ status: 200, headers: json }));
        link.frame(3, stream, 0, '{}');
        link.frame(4, stream, 2, Buffer.of(0));
        link.frame(3, stream, 2, ' ');
        link.send({ type: 'job.completed', job, attempt, result: { status: 200, length: 2 }, usage });
      },
      /after its end/,
    ],
    ['a request body', ({ stream }) => link.frame(1, stream, 0, 'x'), /kind 1/],
    ['a terminal', ({ stream }) => link.frame(5, stream, 0, 'x'), /kind 5/],
    [
      'a success without an answer',
      ({ job, attempt }) =>
        link.send({ type: 'job.completed', job, attempt, result: { status: 200, length: 0 }, usage }),
      /did not arrive whole/,
    ],
    [
      'a success of another length',
      ({ stream, job, attempt }) => {
        link.frame(2, stream, 0, head({ status: 200, headers: json }));
        link.frame(3, stream, 0, '{}');
        link.frame(4, stream, 2, Buffer.of(0));
        link.send({ type: 'job.completed', job, attempt, result: { status: 200, length: 3 }, usage });
      },
      /did not arrive whole/,
    ],
    ['an answer that is no JSON', (offer) => sound(offer, '<html>'), /not JSON/],
  ])('an answer with %s fails on this node, and says why', async (_what, misbehave, why) => {
    const { status, text } = await askRaw(misbehave);
    expect(shapeOf(status, text)).toBe('502 attempts_exhausted');
    expect(text).toMatch(why);
  });

  it('an answer that overruns its window ends in an error', async () => {
    // A client that reads nothing acknowledges nothing.
    const socket = connect(world.plane.port, '127.0.0.1');
    socket.on('error', () => undefined);
    socket.pause();
    const body = JSON.stringify({ model: 'raw', messages: [], stream: true });
    socket.write(
      `POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${key}\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    );
    const offer = await link.next('job.offer');
    link.frame(2, offer.stream, 0, head({ status: 200, headers: sse }));
    const abandoned = link.next('job.abandon');
    const piece = Buffer.from(chatChunk('x'.repeat(60_000)));
    let told = false;
    void abandoned.then(() => (told = true));
    for (let offset = 0; offset < 256 * 1024 * 1024 && !told; offset += piece.length) {
      link.frame(3, offer.stream, offset, piece);
      if (offset % (64 * piece.length) === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    expect((await abandoned).reason).toMatch(/more than the window allows/);
    socket.destroy();
  });

  it.each([
    ['a name with a space', { ...json, 'x y': '1' }],
    ['a name of another alphabet', { ...json, ключ: '1' }],
    ['a name that is empty', { ...json, '': '1' }],
    ['a value of another alphabet', { ...json, 'openai-model': 'ключ' }],
    ['a value with a line break', { ...json, 'openai-model': 'a\r\nset-cookie: a=b' }],
    ['a value with NUL', { ...json, 'openai-model': 'a\0' }],
    ['a value that is a list', { ...json, 'openai-model': ['a', 'b'] }],
    ['a length of its own', { ...json, 'content-length': '1' }],
    ['a coding of its own', { ...json, 'transfer-encoding': 'chunked', trailer: 'x' }],
    ['a cookie', { ...json, 'set-cookie': 'a=b', 'access-control-allow-origin': '*' }],
    ['a name twice', [['content-type', 'text/plain'], ...Object.entries(json)]],
    ['our own', { ...json, 'x-request-id': 'forged', 'x-flotilla-attempts': '99' }],
  ])('a head with %s reaches the client without it', async (_what, headers) => {
    const body = '{"choices":[]}';
    const reply = await askRaw((offer) => sound(offer, body, headers));
    expect(reply.status).toBe(200);
    expect(reply.text).toBe(body);
    expect(reply.headers.get('content-type')).toBe('application/json');
    expect(reply.headers.get('x-request-id')).toMatch(/^req_/);
    for (const name of ['set-cookie', 'x y', 'trailer', 'access-control-allow-origin']) {
      expect(Object.fromEntries(reply.headers)).not.toHaveProperty(name);
    }
  });

  it('a descriptor full of nonsense leaves the node connected, its sound parts standing, and warns', async () => {
    const nonsense = {
      name: 'another',
      labels: ['x'],
      region: 5,
      version: {},
      pools: [
        { id: 'pool', capacity: 4, capacity_from: 'config' },
        { id: 'pool', capacity: 1e9 },
        null,
        { id: 7 },
      ],
      backends: [
        {
          id: 'backend',
          kind: 'raw',
          pool: 'pool',
          models: [{ id: 'raw' }, { id: 5 }, null, { id: 'x'.repeat(300) }, { id: 'a\0b' }],
        },
        { id: 'adrift', kind: 'raw', pool: 'nowhere', models: [] },
        'backend',
      ],
      more: nested(1000),
    };
    link.send({ type: 'descriptor.update', descriptor: nonsense, descriptor_hash: 'nonsense' });
    const found = await until('it warns', async () => {
      const now = await view();
      return now.why.warnings.length > 0 && now;
    });
    expect(found).toMatchObject({ state: 'online', name: 'raw', region: null });
    expect(found.backends.map((backend) => [backend.id, backend.models.map((model) => model.id)])).toEqual([
      ['backend', ['raw']],
    ]);
    for (const part of [
      'labels',
      'region',
      'version',
      'pools.1',
      'pools.2',
      'pools.3',
      'backends.2',
      'adrift',
      'models.1',
      'models.2',
      'models.3',
      'models.4',
    ]) {
      expect(found.why.warnings.join('\n')).toContain(part);
    }
    expect(await askRaw((offer) => sound(offer))).toMatchObject({ status: 200 });
    for (const worse of [null, 5, 'x', [], nested(), { pools: {}, backends: 'x' }]) {
      link.send({ type: 'descriptor.update', descriptor: worse, descriptor_hash: 'h2' });
    }
    link.beat();
    await link.next('node.heartbeat.ack');
  });

  it('a beat with broken parts still keeps the node alive', async () => {
    const broken = {
      id: 5,
      descriptor_hash: 7,
      leases_digest: 'x'.repeat(1000),
      pools: [{ id: 'pool', in_flight: -3, capacity: -1 }],
      backends: [{ id: 'backend', health: 'splendid' }],
      progress_seq: -9,
      rtt_ms: -5,
      draining: 'no',
      host: 7,
    };
    for (const [name, value] of Object.entries(broken)) {
      link.beat({ [name]: value });
      await link.next('node.heartbeat.ack');
    }
    link.beat(broken);
    await link.next('node.heartbeat.ack');
    expect(await view()).toMatchObject({ state: 'online', why: { missed_beats: 0 } });
  });

  it('what a beat says of its machine cannot break the roster', async () => {
    link.send(
      JSON.stringify({ type: 'node.heartbeat', seq: 99, descriptor_hash: 'h1', host: {} }).replace(
        '{}',
        `{"deep":${nested()}}`,
      ),
    );
    await link.next('node.heartbeat.ack');
    expect((await world.nodes()).map((one) => one.name)).toContain('raw');
  });

  it("another node's job is answered as stale, and the other's work lives on", async () => {
    const { data } = await world.plane.get<{ data: { id: string; state: string }[] }>(
      '/api/v1/jobs?state=running',
    );
    const running_jobs = data.filter((job) => job.state === 'running');
    expect(running_jobs).toHaveLength(1);
    const fence = { job: running_jobs[0]!.id, attempt: 1 };
    const acknowledged = link.next('result.ack');
    link.send({ type: 'job.completed', ...fence, result: { status: 200, length: 0 }, usage });
    expect(await acknowledged).toMatchObject({ ...fence, outcome: 'stale' });
    const again = link.next('result.ack');
    link.send({ type: 'job.failed', ...fence, code: 'internal', message: 'mine', retryable: false });
    expect(await again).toMatchObject({ ...fence, outcome: 'stale' });
    const abandoned = link.next('job.abandon');
    link.send({ type: 'job.started', ...fence });
    expect(await abandoned).toMatchObject(fence);
    link.send({ type: 'job.released', ...fence, started: true });
    link.send({ type: 'job.rejected', ...fence, reason: 'no_slot' });
    link.frame(3, 1, 0, 'x');
    link.beat();
    await link.next('node.heartbeat.ack');
  });

  it('an inventory of things nobody knows is abandoned item by item', async () => {
    link.close();
    const item = (index: number) => ({ job: `j${index}`, attempt: 1, state: 'running' });
    const inventory = [{ job: 5 }, null, ...Array.from({ length: 5000 }, (_, index) => item(index))];
    link = await node.dial();
    link.send(rawRegistration('raw', { inventory }));
    const { verdicts } = await link.next('node.registered');
    expect(verdicts).toHaveLength(5000);
    expect(new Set(verdicts.map(({ verdict }) => verdict))).toEqual(new Set(['abandon']));
    for (let index = 0; index < 5000; index++) {
      link.send({ type: 'job.released', job: `j${index}`, attempt: 1, started: true });
    }
    await until('its slots are free', async () => {
      const { pools, state } = await view();
      return state === 'online' && pools.every((pool) => pool.reserved === 0);
    });
  });

  it('ten thousand unknown things do not fit a message, and cost only their own link', async () => {
    link.close();
    const inventory = Array.from({ length: 10_000 }, (_, index) => ({
      job: `job-${index}`,
      attempt: 1,
      state: 'running',
    }));
    link = await node.dial();
    link.send(rawRegistration('raw', { inventory }));
    expect(await link.closed).toMatchObject({ code: 1009 });
  });

  describe('its opening', () => {
    beforeEach(() => link.close());

    it('an unknown protocol version is refused for good, saying which there are', async () => {
      link = await node.dial();
      link.send(rawRegistration('raw', { protocol: { min: 7, max: 9 } }));
      expect(await link.next('error')).toMatchObject({
        code: 'invalid_request',
        message: expect.stringMatching(/7 to 9.* 1/),
      });
      expect(await link.closed).toMatchObject({ code: 4004 });
    });

    it.each([
      ['words', '{', /not JSON/],
      ['a beat', { type: 'node.heartbeat', seq: 1 }, /first message/],
      ['bytes', Buffer.alloc(20), /first message/],
      ['a registration without a boot id', rawRegistration('raw', { boot_id: undefined }), /boot_id/],
      [
        'protocol versions that are words',
        rawRegistration('raw', { protocol: { min: 'a', max: 'b' } }),
        /protocol/,
      ],
    ])(
      '%s instead of a registration: a broken rule, so that a real node comes again',
      async (_what, first, said) => {
        link = await node.dial();
        expect(await link.refused(first)).toMatch(said);
        expect(await link.closed).toMatchObject({ code: 4005 });
      },
    );

    it('anything more before the registration is answered breaks the rules', async () => {
      for (const more of ['{', Buffer.alloc(5), { type: 'node.heartbeat', seq: 1 }]) {
        link = await node.dial();
        let refused: Promise<string> | undefined;
        link.together(() => {
          link.send(rawRegistration('raw'));
          refused = link.refused(more);
        });
        expect(await refused).toMatch(/waits for node.registered/);
        expect(await link.closed).toMatchObject({ code: 4005 });
      }
    });

    it('a message too large right behind a registration closes that link only', async () => {
      link = await node.dial();
      link.send(rawRegistration('raw'));
      link.send(Buffer.alloc(300 * 1024));
      expect(await link.closed).toMatchObject({ code: 1009 });
    });

    it('a message too large behind a refused registration closes that link only', async () => {
      link = await node.dial();
      link.send('{');
      link.send(Buffer.alloc(300 * 1024));
      expect(await link.closed).toMatchObject({ code: expect.any(Number) });
    });

    it('a handshake without its key is refused in the one shape', async () => {
      const { status, body } = await rawHttp(
        world.plane.port,
        `GET /node/v1/link HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${node.credential}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n`,
      );
      expect(shapeOf(status, body)).toBe('400 invalid_request');
    });
  });

  it('text that is no UTF-8 closes that link only', async () => {
    link.ws.send(Buffer.from([0x22, 0xff, 0xfe, 0x22]), { binary: false });
    expect(await link.closed).toMatchObject({ code: 1007 });
  });

  it('inventories that nobody asked for cost those who send them by the hundred their link, and no time', async () => {
    const inventory = Array(4000).fill({ job: 'job-1', attempt: 1, state: 'running' });
    link.flood({ type: 'inventory.sync', inventory });
    expect(await link.next('error')).toMatchObject({ code: 'rate_limited' });
    expect(await link.closed).toMatchObject({ code: 4005 });
    link = await node.join();
  });

  it('a node that asks and never reads is cut off', async () => {
    // Twenty warnings go with each acknowledgement, so that not so many beats are needed.
    const { descriptor } = rawRegistration('raw') as { descriptor: { backends: object[] } };
    descriptor.backends = [{ ...descriptor.backends[0], id: 'b'.repeat(128), models: Array(20).fill(0) }];
    link.send({ type: 'descriptor.update', descriptor });
    link.beat();
    await link.next('node.heartbeat.ack', ({ warnings }) => warnings.length === 20);
    link.ws.pause();
    let asked = 0;
    const asking = setInterval(() => {
      for (let n = 0; n < 100 && link.ws.bufferedAmount < 1024 * 1024; n++, asked++) link.beat();
    });
    await until('it is cut off', async () => (await view()).connected_at === null);
    clearInterval(asking);
    expect(asked).toBeLessThan(100_000);
    link.close();
    link = await node.join();
  });
});

it('clients that never finish their headers are sent away within ten seconds', async () => {
  await until('all are closed', () => slow.every((client) => client.closed), 15_000);
  for (const { said } of slow) expect(said).toMatch(/^HTTP\/1.1 408 [^]*"code":"invalid_request"/);
});
