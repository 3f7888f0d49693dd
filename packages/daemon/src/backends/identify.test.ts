import { Agent } from 'undici';
import { afterAll, describe, expect, onTestFinished, test } from 'vitest';
import {
  type FakeServer as Fake,
  FakeServer,
  llamaCppRoutes,
  lmStudioRoutes,
  ollamaRoutes,
  openaiRoutes,
  vllmRoutes,
} from '../testing/fake-servers.ts';
import { lookAround } from './find.ts';
import { identify } from './identify.ts';
import type { KindName } from './kind.ts';

const dispatcher = new Agent({ pipelining: 0 });
const reach = { dispatcher, signal: new AbortController().signal };
afterAll(() => dispatcher.close());

async function serve(routes: Fake['routes'], server = new FakeServer()): Promise<Fake> {
  server.routes = { ...server.routes, ...routes };
  await server.start();
  onTestFinished(() => server.stop());
  return server;
}

async function listing(url: string, wanted?: KindName) {
  const identified = await identify({ url, headers: {} }, reach, wanted);
  if (!identified.ok) throw new Error(identified.reason);
  const listed = await identified.opened.list();
  return { kind: identified.opened.kind, base_url: identified.opened.base_url, listed };
}

describe('each kind is known by what it answers, and tells what it knows', () => {
  test('Ollama: what is on disk, what is in memory, what each can do', async () => {
    const server = await serve(
      ollamaRoutes({
        'llama3:latest': { loaded: true },
        'nomic-embed-text:latest': { capabilities: ['embedding'] },
      }),
    );
    const { kind, listed } = await listing(server.url);
    expect(kind).toBe('ollama');
    expect(listed).toEqual({
      ok: true,
      listing: {
        loads_on_demand: true,
        version: '0.12.3',
        models: [
          { id: 'llama3:latest', operations: ['chat', 'completions'], loaded: true, context_length: 4096 },
          { id: 'nomic-embed-text:latest', operations: ['embeddings'], loaded: false },
        ],
      },
    });
  });

  test('Ollama is asked once what a model can do, not at every list', async () => {
    const server = await serve(ollamaRoutes({ a: {}, b: {} }));
    const identified = await identify({ url: server.url, headers: {} }, reach);
    if (!identified.ok) throw new Error(identified.reason);
    await identified.opened.list();
    await identified.opened.list();
    expect(server.count('/api/show')).toBe(2);
    expect(server.count('/v1/chat/completions')).toBe(0);
  });

  test('Ollama with nothing installed is an Ollama with no models', async () => {
    const server = await serve({
      ...ollamaRoutes({}),
      '/v1/models': { json: { object: 'list', data: null } },
    });
    expect(await listing(server.url)).toMatchObject({
      kind: 'ollama',
      listed: { ok: true, listing: { models: [] } },
    });
  });

  test('llama.cpp: its slots, the context of each, its build', async () => {
    const server = await serve(llamaCppRoutes('qwen', 3));
    const { kind, listed } = await listing(server.url);
    expect(kind).toBe('llama.cpp');
    expect(listed).toEqual({
      ok: true,
      listing: {
        loads_on_demand: false,
        slots: 3,
        version: 'b6000-abc',
        models: [{ id: 'qwen', operations: ['chat', 'completions'], loaded: true, context_length: 8192 }],
      },
    });
  });

  test('llama.cpp that still loads its model says so, although it lists it', async () => {
    const server = await serve({
      ...llamaCppRoutes('qwen'),
      '/health': { status: 503, json: { error: { message: 'Loading model' } } },
    });
    expect((await listing(server.url)).listed).toEqual({
      ok: false,
      refused: false,
      reason: 'It is still loading its model.',
    });
  });

  test('llama.cpp as a router over several models loads on demand', async () => {
    const entry = (id: string, value: string) => ({
      id,
      object: 'model',
      owned_by: 'llamacpp',
      status: { value },
    });
    const server = await serve({
      ...llamaCppRoutes('x'),
      '/v1/models': { json: { object: 'list', data: [entry('a', 'loaded'), entry('b', 'unloaded')] } },
    });
    const { listed } = await listing(server.url);
    expect(listed).toMatchObject({
      listing: {
        loads_on_demand: true,
        models: [
          { id: 'a', loaded: true },
          { id: 'b', loaded: false },
        ],
      },
    });
  });

  test('vLLM: its version and longest context', async () => {
    const server = await serve(vllmRoutes('mistral'));
    const { kind, listed } = await listing(server.url);
    expect(kind).toBe('vllm');
    expect(listed).toEqual({
      ok: true,
      listing: {
        loads_on_demand: false,
        version: '0.11.0',
        models: [{ id: 'mistral', operations: ['chat', 'completions'], context_length: 32768 }],
      },
    });
  });

  test('LM Studio: type and state of each, though every unknown path is a success there', async () => {
    const server = await serve(
      {},
      lmStudioRoutes([
        { id: 'gemma', type: 'llm', state: 'loaded' },
        { id: 'nomic', type: 'embeddings', state: 'not-loaded' },
      ]),
    );
    const { kind, listed } = await listing(server.url);
    expect(kind).toBe('lm-studio');
    expect(listed).toEqual({
      ok: true,
      listing: {
        loads_on_demand: true,
        models: [
          { id: 'gemma', operations: ['chat', 'completions'], loaded: true, context_length: 32768 },
          { id: 'nomic', operations: ['embeddings'], loaded: false },
        ],
      },
    });
  });

  test('any other server with OpenAI’s API; with several models it may swap them', async () => {
    const one = await serve(openaiRoutes(['m']));
    expect(await listing(one.url)).toMatchObject({
      kind: 'openai',
      listed: { listing: { loads_on_demand: false } },
    });
    const several = await serve(openaiRoutes(['m', 'bge-large-en']));
    expect(await listing(several.url)).toMatchObject({
      listed: {
        listing: { loads_on_demand: true, models: [{}, { id: 'bge-large-en', operations: ['embeddings'] }] },
      },
    });
  });

  test('a simulated server never passes for a real one', async () => {
    const server = await serve({
      '/v1/models': {
        json: { object: 'list', data: [{ id: 'm', object: 'model', owned_by: 'flotilla-sim' }] },
      },
    });
    expect((await listing(server.url)).listed).toMatchObject({ listing: { calls_itself: 'sim' } });
  });
});

describe('the address', () => {
  test('may be given with or without /v1, or be an API under a path of its own', async () => {
    const server = await serve({
      ...openaiRoutes(['m']),
      '/openai/models': openaiRoutes(['n'])['/v1/models']!,
    });
    expect((await listing(server.url)).base_url).toBe(`${server.url}/v1`);
    expect((await listing(`${server.url}/v1`)).base_url).toBe(`${server.url}/v1`);
    expect((await listing(`${server.url}/openai`)).base_url).toBe(`${server.url}/openai`);
  });

  test('nothing there is refused; a Flotilla control plane is told apart', async () => {
    const server = await serve({
      '/v1/models': { json: { object: 'list', data: [{ id: 'm', object: 'model', owned_by: 'flotilla' }] } },
    });
    expect((await listing(server.url)).listed).toMatchObject({
      ok: false,
      reason: expect.stringContaining('in circles') as string,
    });
    await server.stop();
    expect(await identify({ url: server.url, headers: {} }, reach)).toMatchObject({
      ok: false,
      refused: true,
    });
  });
});

describe('a models list that cannot be read is a failure with a reason, never an empty list', () => {
  test.each([
    ['no JSON', { text: '{"data": [' }, /no JSON object/],
    ['a web page', { text: '<html>', headers: { 'content-type': 'text/html' } }, /no JSON object/],
    ['no list in it', { json: { object: 'list' } }, /no list "data"/],
    ['a null in its place', { json: { object: 'list', data: null } }, /no list "data"/],
    [
      'entries without ids',
      { json: { object: 'list', data: [{ name: 'a' }, 'b'] } },
      /none of its 2 entries/,
    ],
    ['an error', { status: 500, json: {} }, /status 500/],
    [
      'a redirect, which is not followed',
      { status: 302, headers: { location: 'http://169.254.169.254/' } },
      /status 302/,
    ],
    ['a wish for a key', { status: 401, json: {} }, /api_key in node.yaml/],
    ['more than there can be', { text: 'x'.repeat(9 * 1024 * 1024) }, /more than/],
  ])('%s', async (_name, answer, reason) => {
    const server = await serve({ '/v1/models': answer });
    const identified = await identify({ url: server.url, headers: {} }, reach);
    expect(identified).toMatchObject({
      ok: false,
      refused: false,
      reason: expect.stringMatching(reason) as string,
    });
  });

  test('single bad entries cost only themselves', async () => {
    const server = await serve({
      '/v1/models': { json: { object: 'list', data: [{ id: '' }, null, { id: 'good' }, { id: 7 }] } },
    });
    expect((await listing(server.url)).listed).toMatchObject({
      ok: true,
      listing: { models: [{ id: 'good' }] },
    });
  });

  test('an Ollama that does not say what is loaded is not probed blindly', async () => {
    const server = await serve({ ...ollamaRoutes({ a: {} }), '/api/ps': { status: 500, json: {} } });
    expect((await listing(server.url)).listed).toMatchObject({
      ok: false,
      reason: 'GET /api/ps: it answered status 500.',
    });
  });
});

describe('looking around', () => {
  test('finds any kind at any of the ports, named by its kind and port', async () => {
    const ollama = await serve(ollamaRoutes({ a: {} }));
    const vllm = await serve(vllmRoutes('m'));
    const { found, ignored } = await lookAround(reach, [ollama.port, vllm.port]);
    expect(found.map(({ id }) => id)).toEqual([`ollama-${ollama.port}`, `vllm-${vllm.port}`]);
    expect(ignored).toEqual([]);
  });

  test.each<[string, Fake['routes']]>([
    ['a web application', { '/v1/models': { text: '<!doctype html>' } }],
    [
      'an API that has other things at that path',
      { '/v1/models': { json: { data: [{ id: 'model-t', colour: 'black' }] } } },
    ],
    ['one that is empty', { '/v1/models': { json: { object: 'list', data: [] } } }],
    ['one that wants a key', { '/v1/models': { status: 401, json: {} } }],
    ['one with an Ollama-like version', { '/api/version': { json: { version: '1.0' } } }],
  ])('does not take %s for a model server, and says what it ignored', async (_name, routes) => {
    const server = await serve(routes);
    const { found, ignored } = await lookAround(reach, [server.port]);
    expect(found).toEqual([]);
    expect(ignored).toEqual([{ url: server.url, reason: expect.any(String) as string }]);
  });

  test('asks what is no model server one question, not one for each kind', async () => {
    const server = await serve({ '/v1/models': { text: '<!doctype html>' } });
    await lookAround(reach, [server.port]);
    expect(server.asked).toHaveLength(1);
  });

  test('sends no key and no question that costs anything', async () => {
    const server = await serve(openaiRoutes(['m']));
    await lookAround(reach, [server.port]);
    expect(
      server.asked.every(({ method, headers }) => method === 'GET' && headers.authorization === undefined),
    ).toBe(true);
  });
});
