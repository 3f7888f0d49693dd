import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { once } from 'node:events';
import { afterEach, describe, expect, expectTypeOf, test } from 'vitest';
import { Flotilla, FlotillaApiError, type FlotillaOptions, type Key } from './index.ts';

interface Seen {
  method: string;
  url: string;
  headers: IncomingMessage['headers'];
  body: string;
}
type Handler = (seen: Seen, response: ServerResponse, request: IncomingMessage) => void;

const closers: (() => void)[] = [];
afterEach(() => {
  for (const close of closers.splice(0)) close();
});

async function serve(handler: Handler): Promise<string> {
  const server = createServer((request, response) => {
    let body = '';
    request.setEncoding('utf8');
    request.on('data', (text: string) => {
      body += text;
    });
    request.on('end', () => {
      const { method = '', url = '', headers } = request;
      handler({ method, url, headers, body }, response, request);
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  closers.push(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

async function client(handler: Handler, options: Partial<FlotillaOptions> = {}): Promise<Flotilla> {
  return new Flotilla({ url: await serve(handler), api_key: 'flk_test', ...options });
}

const json = (response: ServerResponse, value: unknown, status = 200, headers: Record<string, string> = {}) =>
  response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(value));

const failure = (promise: Promise<unknown>): Promise<FlotillaApiError> =>
  promise.then(
    () => expect.unreachable('the call should fail'),
    (error: unknown) => {
      expect(error).toBeInstanceOf(FlotillaApiError);
      return error as FlotillaApiError;
    },
  );

async function collect<T>(source: AsyncIterable<T>): Promise<T[]> {
  const items: T[] = [];
  for await (const item of source) items.push(item);
  return items;
}

describe('a call', () => {
  test('goes to the route with key, path, query and body, and its answer is typed by the protocol', async () => {
    const seen: Seen[] = [];
    const flotilla = await client((request, response) => {
      seen.push(request);
      json(response, { id: 'key_1', name: 'ci' });
    });
    const key = await flotilla.keys.update('key/1', { name: 'ci' });
    expectTypeOf(key).toEqualTypeOf<Key>();
    expect(key.name).toBe('ci');
    await flotilla.models.show('org/model a');
    await flotilla.usage.summary({ by: 'node' });
    expect(seen.map(({ method, url }) => `${method} ${url}`)).toEqual([
      'PATCH /api/v1/keys/key%2F1',
      'GET /v1/models/org/model%20a',
      'GET /api/v1/usage/summary?by=node',
    ]);
    expect(seen[0]).toMatchObject({ body: '{"name":"ci"}', headers: { authorization: 'Bearer flk_test' } });
  });

  test('of a route that answers 204 resolves to nothing', async () => {
    const flotilla = await client((_, response) => response.writeHead(204).end());
    expect(await flotilla.nodes.delete('node_1')).toBeUndefined();
  });

  test('carries headers that are asked for each time', async () => {
    let count = 0;
    const flotilla = await client((seen, response) => json(response, { id: seen.headers['x-count'] }), {
      headers: () => ({ 'x-count': String(++count) }),
    });
    expect((await flotilla.whoami()).id).toBe('1');
    expect((await flotilla.whoami()).id).toBe('2');
  });
});

describe('an error', () => {
  test('carries code, status, message, request id and the time to wait', async () => {
    const flotilla = await client((_, response) =>
      json(
        response,
        { error: { message: 'Too many.', type: 'rate_limit_error', code: 'queue_full', param: null } },
        429,
        { 'x-request-id': 'req_1', 'retry-after': '2', 'retry-after-ms': '1250' },
      ),
    );
    expect(await failure(flotilla.whoami())).toMatchObject({
      code: 'queue_full',
      status: 429,
      message: 'Too many.',
      request_id: 'req_1',
      retry_after_ms: 1250,
    });
  });

  test('of a server that is not Flotilla says so', async () => {
    const flotilla = await client((_, response) => response.writeHead(404).end('<html>nginx</html>'));
    const error = await failure(flotilla.whoami());
    expect(error).toMatchObject({ code: 'unreadable', status: 404 });
    expect(error.message).toContain('Is http://127.0.0.1:');
  });

  test('of an address where nothing listens names the address and the reason', async () => {
    const url = await serve(() => undefined);
    for (const close of closers.splice(0)) close();
    const error = await failure(new Flotilla({ url }).whoami());
    expect(error).toMatchObject({ code: 'unreachable', status: 0 });
    expect(error.message).toMatch(new RegExp(`${url}.*ECONNREFUSED`));
  });

  test('of a server that never answers is timed_out', async () => {
    const flotilla = await client(() => undefined, { timeout_ms: 50 });
    expect(await failure(flotilla.whoami())).toMatchObject({ code: 'timed_out' });
  });

  test('of an answer whose connection breaks in its body is cut, with the reason', async () => {
    const flotilla = await client((_, response) => {
      response.writeHead(200, { 'content-length': '100', 'x-request-id': 'req_3' });
      response.write('{"id":', () => response.destroy());
    });
    const ask = { model: 'm', messages: [{ role: 'user', content: 'hi' }] };
    for (const call of [() => flotilla.whoami(), () => flotilla.chat.create(ask)]) {
      const error = await failure(call());
      expect(error).toMatchObject({ code: 'cut', retryable: true, request_id: 'req_3' });
      expect(error.message).toContain('before the end of the answer: ');
    }
  });

  test('is not made of an abort within the body: the reason of the signal comes through', async () => {
    const abort = new AbortController();
    const reason = new Error('enough');
    const flotilla = await client(
      (_, response) => void response.writeHead(200, { 'content-length': '100' }).write('{"id":'),
      {
        fetch: async (...asked) => {
          const answer = await fetch(...asked);
          abort.abort(reason);
          return answer;
        },
      },
    );
    await expect(flotilla.whoami({ signal: abort.signal })).rejects.toBe(reason);
  });

  test('is not made of an abort: the reason of the signal comes through', async () => {
    const abort = new AbortController();
    const reason = new Error('enough');
    const flotilla = await client(() => abort.abort(reason));
    await expect(flotilla.whoami({ signal: abort.signal })).rejects.toBe(reason);
  });

  test('is a url without its scheme, at once', () => {
    expect(() => new Flotilla({ url: 'localhost:7400' })).toThrow(/http:\/\//);
  });
});

describe('a list', () => {
  const pages: Handler = (seen, response) => {
    const after = new URL(seen.url, 'http://x').searchParams.get('after');
    const from = Number(after ?? 0);
    json(response, {
      data: [{ id: `key_${from}` }, { id: `key_${from + 1}` }],
      next_after: from < 4 ? String(from + 2) : null,
    });
  };

  test('runs over all its pages', async () => {
    const flotilla = await client(pages);
    const keys = await collect(flotilla.keys.list());
    expect(keys.map((key) => key.id)).toEqual(['key_0', 'key_1', 'key_2', 'key_3', 'key_4', 'key_5']);
  });

  test('fetches no page that nobody asked for, and keeps its filter on each', async () => {
    const urls: string[] = [];
    const flotilla = await client((seen, ...rest) => {
      urls.push(seen.url);
      pages(seen, ...rest);
    });
    expect(await flotilla.usage.list({ model: 'm' }).take(3)).toHaveLength(3);
    expect(urls).toEqual(['/api/v1/usage?model=m', '/api/v1/usage?model=m&after=2']);
    expect((await flotilla.keys.list().page('4')).next_after).toBeNull();
  });
});

describe('a streamed answer', () => {
  const chunk = (content: string) => `data: {"choices":[{"index":0,"delta":{"content":"${content}"}}]}\n\n`;
  const stream = (...pieces: string[]): Handler => {
    return (_, response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream', 'x-request-id': 'req_2' });
      for (const piece of pieces) response.write(piece);
      response.end();
    };
  };
  const ask = { model: 'm', messages: [{ role: 'user', content: 'hi' }] };

  test('gives its chunks as they come, without comments and [DONE]', async () => {
    const flotilla = await client(stream(': position=2\n\n', chunk('a'), chunk('b'), 'data: [DONE]\n\n'));
    const answer = await flotilla.chat.stream(ask);
    expect(answer.request_id).toBe('req_2');
    let text = '';
    for await (const { choices } of answer) text += choices[0]?.delta.content ?? '';
    expect(text).toBe('ab');
  });

  test('gives everything raw through events()', async () => {
    const flotilla = await client(stream(': position=2\n\n', chunk('a'), 'data: [DONE]\n\n'));
    const events = await collect((await flotilla.chat.stream(ask)).events());
    expect(events.map(({ event }) => event)).toEqual(['comment', 'message', 'message']);
    expect(events.at(-1)?.data).toBe('[DONE]');
  });

  test('throws when it ends without [DONE]', async () => {
    const flotilla = await client(stream(chunk('a')));
    const answer = await flotilla.chat.stream(ask);
    expect(await failure(collect(answer))).toMatchObject({ code: 'cut', request_id: 'req_2' });
  });

  test('throws when its connection breaks', async () => {
    const flotilla = await client((_, response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write(chunk('a'), () => response.destroy());
    });
    expect(await failure(collect(await flotilla.chat.stream(ask)))).toMatchObject({ code: 'cut' });
  });

  test('throws the error that came in its band', async () => {
    const flotilla = await client(
      stream(chunk('a'), 'data: {"error":{"message":"The node vanished.","code":"node_lost"}}\n\n'),
    );
    expect(await failure(collect(await flotilla.chat.stream(ask)))).toMatchObject({
      code: 'node_lost',
      message: 'The node vanished.',
    });
  });

  test('closes its connection when the reader leaves', async () => {
    const { promise: left, resolve } = Promise.withResolvers<void>();
    const flotilla = await client((_, response) => {
      response.on('close', () => resolve());
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write(chunk('a'));
    });
    for await (const { choices } of await flotilla.chat.stream(ask)) {
      expect(choices).toHaveLength(1);
      break;
    }
    await left;
  });

  test('is refused before it begins as any other call', async () => {
    const flotilla = await client((seen, response) => {
      expect(JSON.parse(seen.body)).toMatchObject({ model: 'm', stream: true });
      json(response, { error: { message: 'No such model.', code: 'model_not_found' } }, 404);
    });
    expect(await failure(flotilla.chat.stream(ask))).toMatchObject({ code: 'model_not_found', status: 404 });
  });
});

describe('watching a job', () => {
  const job = (state: string, finished_at: string | null = null) =>
    `event: state\ndata: ${JSON.stringify({ id: 'job_1', state, finished_at })}\n\n`;

  test('goes on over broken connections and in-band errors, and tells each state once', async () => {
    const answers = [
      `${job('queued')}${job('running')}`,
      `${job('running')}: \n\nevent: error\ndata: {"error":{"message":"Away.","code":"unavailable"}}\n\n`,
      `${job('succeeded', '2026-01-01T00:00:00Z')}`,
    ];
    const flotilla = await client((_seen, response) => {
      const text = answers.shift()!;
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      if (answers.length === 2) response.write(text, () => response.destroy());
      else response.end(text);
    });
    const seen = await collect(flotilla.jobs.watch('job_1'));
    expect(seen.map(({ state }) => state)).toEqual(['queued', 'running', 'succeeded']);
  });

  test('ends with the error of a job that is not there', async () => {
    const flotilla = await client((_, response) =>
      json(response, { error: { message: 'No such job.', code: 'not_found' } }, 404),
    );
    expect(await failure(flotilla.jobs.wait('job_1'))).toMatchObject({ code: 'not_found' });
  });

  test('fails once the control plane was out of reach for as long as it may be', async () => {
    const url = await serve(() => undefined);
    for (const close of closers.splice(0)) close();
    const waiting = new Flotilla({ url }).jobs.wait('job_1', { patience_ms: 0 });
    expect(await failure(waiting)).toMatchObject({ code: 'unreachable' });
  });
});

test('an integer that a number cannot hold is sent and read digit for digit', async () => {
  const digits = '12345678901234567890';
  let sent = '';
  const flotilla = await client(({ body, method }, response) => {
    if (method === 'POST') sent = body;
    response.writeHead(200, { 'content-type': 'application/json' });
    response.end(method === 'POST' ? '{"id":"job_1"}' : `{"seed":${digits}, "small":7}`);
  });
  await flotilla.jobs.submit({ model: 'm', request: { messages: [], seed: BigInt(digits) } });
  expect(sent).toContain(`"seed":${digits}`);
  const result = await flotilla.jobs.result('job_1');
  expect(JSON.stringify(result)).toBe(`{"seed":${digits},"small":7}`);
  expect(await flotilla.jobs.resultText('job_1')).toBe(`{"seed":${digits}, "small":7}`);
});
