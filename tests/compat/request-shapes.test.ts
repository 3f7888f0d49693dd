import { readdirSync, readFileSync } from 'node:fs';
import { request as httpRequest } from 'node:http';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  chatChunk,
  DONE,
  type Handler,
  type ScriptedBackend,
  SSE,
  USAGE_CHUNK,
} from '../support/scripted-backend.ts';
import { openWorld, type World } from '../support/world.ts';

/**
 * Requests as other people's programs send them, against real processes: each is served, reaches the backend as it was
 * sent, and is answered as the backend answered. `shapes/` says of each client its version and where its requests are
 * known from.
 */
interface Shapes {
  client: string;
  version: string;
  source: string;
  how: string;
  requests: Shape[];
}
interface Shape {
  name: string;
  method: string;
  path: string;
  headers: Record<string, string>;
  /** The bytes as they were sent; empty: none. */
  body: string;
}

const FOLDER = new URL('shapes/', import.meta.url);
const CLIENTS = readdirSync(FOLDER).map(
  (file) => JSON.parse(readFileSync(new URL(file, FOLDER), 'utf8')) as Shapes,
);
const CHAT = 'org/sim-chat';
const EMBEDDING = 'sim-embed';
/** Where a page of Open WebUI comes from that talks to us directly. */
const ORIGIN = 'https://chat.example';

let world: World;
let backend: ScriptedBackend;
beforeAll(async () => {
  world = await openWorld({ env: { FLOTILLA_CORS_ORIGINS: ORIGIN } });
  backend = await world.backend(answer, [CHAT, EMBEDDING]);
  await world.node({ name: 'box', backends: [{ url: backend.url, slots: 4 }] });
}, 120_000);
afterAll(() => world?.close(), 60_000);

const COMPLETION =
  '{"id": "x",\n "object": "chat.completion", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}';
const VECTORS =
  '{"object":"list","data":[{"object":"embedding","index":0,"embedding":"AACAPw=="}],"usage":{"prompt_tokens":3,"total_tokens":3}}';
const STREAM = chatChunk('Hi') + chatChunk('', 'stop');

interface Sent {
  stream?: boolean;
  stream_options?: { include_usage?: boolean };
}

const answer: Handler = ({ path, body }, response) => {
  const { stream, stream_options } = JSON.parse(body.toString()) as Sent;
  if (stream === true) {
    response.writeHead(200, SSE);
    response.end(STREAM + (stream_options?.include_usage === true ? USAGE_CHUNK : '') + DONE);
    return;
  }
  response.setHeader('content-type', 'application/json');
  response.end(path.endsWith('/embeddings') ? VECTORS : COMPLETION);
};

interface Reply {
  status: number;
  headers: Record<string, string | string[] | undefined>;
  text: string;
}

/** By Node's own client, which adds no header of its own but `Host`, `Connection` and the length. */
function send(
  { method, path, headers, body }: Omit<Shape, 'name'>,
  key = world.plane.admin_key,
): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const length = body === '' ? {} : { 'content-length': String(Buffer.byteLength(body)) };
    const all = { ...headers, ...length, authorization: `Bearer ${key}` };
    const sent = httpRequest(world.plane.url + path, { method, headers: all }, (reply) => {
      const parts: Buffer[] = [];
      reply.on('data', (part: Buffer) => parts.push(part));
      reply.on('error', reject);
      reply.on('end', () =>
        resolve({
          status: reply.statusCode ?? 0,
          headers: reply.headers,
          text: Buffer.concat(parts).toString(),
        }),
      );
    });
    sent.on('error', reject);
    sent.end(body);
  });
}

describe.each(CLIENTS)('$client ($version)', ({ source, how, requests }) => {
  it('says where its requests are known from', () => {
    expect(source).toMatch(/\S/);
    expect(how).toMatch(/^(recorded|written) from/);
    expect(requests.length).toBeGreaterThan(5);
  });

  it.each(requests)('$name', async (shape) => {
    const seen = backend.requests.length;
    const reply = await send(shape);
    expect([reply.status, reply.status === 200 || reply.text]).toEqual([200, true]);
    if (shape.method === 'GET') {
      const { object, data } = JSON.parse(reply.text) as { object: string; data: Record<string, unknown>[] };
      expect([object, data.map(({ id }) => id)]).toEqual(['list', [CHAT, EMBEDDING]]);
      for (const model of data)
        expect(model).toEqual({
          id: model['id'],
          object: 'model',
          created: expect.any(Number),
          owned_by: expect.any(String),
        });
      return;
    }
    const body = JSON.parse(shape.body) as Sent;
    const [got, ...more] = backend.requests.slice(seen);
    expect(more).toEqual([]);
    expect(got!.path).toBe(shape.path.replace('//', '/'));
    // What is the client's own is not the backend's business.
    expect(
      Object.keys(got!.headers).filter((name) => /cookie|openwebui|stainless|origin/.test(name)),
    ).toEqual([]);
    expect(got!.headers['authorization']).toBeUndefined();
    if (body.stream === true && body.stream_options === undefined) {
      // The one thing that may be added, and its event is not the client's.
      expect(JSON.parse(got!.body.toString())).toEqual({ ...body, stream_options: { include_usage: true } });
      expect(reply.text).toBe(STREAM + DONE);
      return;
    }
    expect(got!.body.toString()).toBe(shape.body);
    if (body.stream === true) {
      expect(reply.headers['content-type']).toMatch(/^text\/event-stream/);
      expect(reply.text).toBe(STREAM + USAGE_CHUNK + DONE);
    } else {
      expect(reply.text).toBe(shape.path.endsWith('/embeddings') ? VECTORS : COMPLETION);
    }
  });

  it('leaves one usage row for each that is work, with the tokens that the backend counted', async () => {
    const key = await world.key();
    const work = requests.filter(({ method }) => method === 'POST');
    for (const shape of work) expect((await send(shape, key)).status).toBe(200);
    const { data } = await world.plane.get<{ data: { prompt_tokens: number; estimated: boolean }[] }>(
      '/api/v1/usage?limit=500',
      key,
    );
    expect(data.map(({ prompt_tokens, estimated }) => [prompt_tokens, estimated])).toEqual(
      work.map(() => [3, false]),
    );
  });
});

describe('what clients ask before they ask', () => {
  const probe = (method: string, path: string) =>
    send({ method, path, headers: { accept: '*/*' }, body: '' });

  it.each(['/v1/models', '/v1/models/', '/v1//models', '/v1/models?limit=100', '//v1/models'])(
    'GET %s lists the models',
    async (path) => {
      const { status, text } = await probe('GET', path);
      expect([status, status === 200 || text]).toEqual([200, true]);
    },
  );

  it('HEAD says that it is there, without a body', async () => {
    const { status, text, headers } = await probe('HEAD', '/v1/models');
    expect([status, text]).toEqual([200, '']);
    expect(headers['content-type']).toMatch(/^application\/json/);
  });

  it('a model by its name, with its slash as it is or encoded', async () => {
    for (const id of [CHAT, encodeURIComponent(CHAT)]) {
      const { status, text } = await probe('GET', `/v1/models/${id}`);
      expect([status, JSON.parse(text)]).toMatchObject([200, { id: CHAT, object: 'model' }]);
    }
  });

  it.each(['/models', '/chat/completions', '/api/models', '/embeddings/'])(
    'at %s, an address without its /v1: a 404 in JSON that says what the address is',
    async (path) => {
      const { status, text } = await probe(path === '/models' ? 'GET' : 'POST', path);
      const { error } = JSON.parse(text) as { error: { code: string; message: string } };
      expect([status, error.code]).toEqual([404, 'not_found']);
      expect(error.message).toContain(path.startsWith('/api/') ? '/openapi.json' : 'ends with /v1');
    },
  );

  it('a browser asks whether a page of another origin may, and may then', async () => {
    const asked = await send({
      method: 'OPTIONS',
      path: '/v1/chat/completions',
      headers: {
        Origin: ORIGIN,
        'Access-Control-Request-Method': 'POST',
        'Access-Control-Request-Headers': 'authorization,content-type',
      },
      body: '',
    });
    expect([asked.status, asked.headers['access-control-allow-origin']]).toEqual([204, ORIGIN]);
  });
});
