import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Collector, type ReceivedSpan, startCollector } from '../support/collector.ts';
import {
  chatAnswer,
  chatChunk,
  DONE,
  type ScriptedBackend,
  SSE,
  USAGE_CHUNK,
} from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';
import { openWorld, type World } from '../support/world.ts';

/** A trace of each request, as a collector gets it; what is in it, and what must never be. */
let collector: Collector;
let world: World;
let steady: ScriptedBackend;
let failing: ScriptedBackend;

beforeAll(async () => {
  collector = await startCollector();
  world = await openWorld({
    env: {
      OTEL_EXPORTER_OTLP_ENDPOINT: collector.url,
      OTEL_SERVICE_NAME: 'fleet of a test',
      FLOTILLA_PUBLIC_URL: 'https://fleet.example',
    },
  });
  steady = await world.backend((_request, response) => {
    response.setHeader('content-type', 'application/json');
    response.end(chatAnswer('the secret answer'));
  });
  failing = await world.backend(
    (_request, response) => {
      response.statusCode = 500;
      response.end('{"error":{"message":"out of memory"}}');
    },
    ['broken'],
  );
  await world.node({ name: 'attic', backends: [{ url: steady.url }, { url: failing.url }] });
}, 90_000);
afterAll(async () => {
  await world?.close();
  await collector?.close();
});

const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736';
const PARENT = '00f067aa0ba902b7';
const prompt = { messages: [{ role: 'user', content: 'the secret prompt' }] };

/** The spans of one request, its own first: found by the request's id. */
async function traceOf(request_id: string): Promise<[ReceivedSpan, ...ReceivedSpan[]]> {
  const own = await until(
    `the trace of ${request_id} has come`,
    () => collector.spans.find(({ attributes }) => attributes['flotilla.request_id'] === request_id),
    30_000,
  );
  const below = await until('its parts have come', () => {
    const found = collector.spans.filter(({ parent }) => parent === own.span_id);
    return found.length >= 1 + Number(own.attributes['flotilla.attempts']) && found;
  });
  return [own, ...below];
}

test('a stream that a client traces goes on in its trace, with what the GenAI conventions call it', async () => {
  steady.answer = (_request, response) => {
    response.writeHead(200, SSE);
    response.end(`${chatChunk('the secret answer', 'stop')}${USAGE_CHUNK}${DONE}`);
  };
  const began = Date.now();
  const reply = await world.plane.chat(
    { stream: true, ...prompt },
    { headers: { traceparent: `00-${TRACE}-${PARENT}-01`, 'x-request-id': 'traced-1' } },
  );
  expect(await reply.text()).toContain('[DONE]');
  const [own, ...below] = await traceOf('traced-1');
  // What the backend traces is below the request's own span.
  expect(steady.requests.at(-1)!.headers['traceparent']).toBe(`00-${TRACE}-${own.span_id}-01`);
  expect(own).toMatchObject({ name: 'chat scripted', kind: 2, trace_id: TRACE, parent: PARENT, status: 0 });
  expect(own.service).toBe('fleet of a test');
  expect(own.attributes).toMatchObject({
    'gen_ai.operation.name': 'chat',
    'gen_ai.provider.name': 'flotilla',
    'gen_ai.request.model': 'scripted',
    'gen_ai.response.model': 'scripted',
    'gen_ai.usage.input_tokens': 3,
    'gen_ai.usage.output_tokens': 5,
    'server.address': 'fleet.example',
    'http.response.status_code': 200,
  });
  expect(own.attributes).not.toHaveProperty('error.type');
  expect(below.map(({ name }) => name).sort()).toEqual(['attempt 1', 'queue']);
  const attempt = below.find(({ name }) => name === 'attempt 1')!;
  const [node] = await world.nodes();
  expect(attempt.attributes).toMatchObject({ 'flotilla.node': node!.id, 'flotilla.outcome': 'succeeded' });
  expect(attempt.events).toEqual(['started', 'first byte']);
  for (const span of [own, ...below]) {
    expect(span.trace_id).toBe(TRACE);
    expect(span.start_ms).toBeGreaterThan(began - 1000);
    expect(span.end_ms).toBeGreaterThanOrEqual(span.start_ms);
    expect(span.end_ms).toBeLessThan(Date.now() + 1000);
  }
});

test('a request that fails tells of each attempt, and why', async () => {
  const reply = await world.plane.chat(
    { model: 'broken', ...prompt },
    { headers: { 'x-request-id': 'traced-2' } },
  );
  expect(reply.status).toBeGreaterThanOrEqual(500);
  const [own, ...below] = await traceOf('traced-2');
  const { code } = ((await reply.json()) as { error: { code: string } }).error;
  expect(own).toMatchObject({ status: 2, attributes: { 'error.type': code } });
  expect(own.trace_id).not.toBe(TRACE);
  const attempts = below.filter(({ name }) => name.startsWith('attempt'));
  expect(attempts.length).toBeGreaterThan(0);
  for (const { status, attributes } of attempts) {
    expect(status).toBe(2);
    expect(attributes).toHaveProperty('error.type');
  }
});

test('one that is refused has a span with the refusal, and is no failure of the server', async () => {
  const headers = { traceparent: `00-${'a'.repeat(32)}-${PARENT}-01` };
  await (await world.plane.chat({ model: 'nobody-has-it', ...prompt }, { headers })).text();
  const refused = await until('its span has come', () =>
    collector.spans.find(({ trace_id }) => trace_id === 'a'.repeat(32)),
  );
  expect(refused).toMatchObject({ name: 'chat', parent: PARENT, status: 0 });
  expect(refused.attributes).toMatchObject({
    'error.type': 'model_not_found',
    'http.response.status_code': 404,
  });
});

test('a client that wants no trace gets none', async () => {
  const unsampled = { traceparent: `00-${'b'.repeat(32)}-${PARENT}-00` };
  await (await world.plane.chat(prompt, { headers: unsampled })).text();
  expect(steady.requests.at(-1)!.headers['traceparent']).toMatch(
    new RegExp(`^00-${'b'.repeat(32)}-[\\da-f]{16}-00$`),
  );
  await (await world.plane.chat(prompt, { headers: { 'x-request-id': 'traced-3' } })).text();
  const [own] = await traceOf('traced-3');
  expect(steady.requests.at(-1)!.headers['traceparent']).toBe(`00-${own.trace_id}-${own.span_id}-01`);
  expect(collector.spans.filter(({ trace_id }) => trace_id === 'b'.repeat(32))).toEqual([]);
});

test('a detached job has one span from its acceptance to its end, in the trace of its client, which goes on at the backend', async () => {
  const traceparent = `00-${'c'.repeat(32)}-${PARENT}-01`;
  const submit = async (model: string, request_id: string) => {
    const reply = await fetch(`${world.plane.url}/api/v1/jobs`, {
      method: 'POST',
      headers: {
        authorization: `Bearer ${world.plane.admin_key}`,
        'content-type': 'application/json',
        'x-request-id': request_id,
        traceparent,
      },
      body: JSON.stringify({ model, request: prompt }),
    });
    expect(reply.status).toBe(202);
  };
  steady.answer = (_request, response) => void response.end(chatAnswer('the secret answer'));
  await submit('scripted', 'traced-4');
  const [own, ...below] = await traceOf('traced-4');
  expect(own).toMatchObject({ name: 'chat scripted', trace_id: 'c'.repeat(32), parent: PARENT, status: 0 });
  expect(own.attributes).toMatchObject({ 'flotilla.detached': true, 'gen_ai.usage.output_tokens': 5 });
  expect(below.map(({ name }) => name).sort()).toEqual(['attempt 1', 'queue']);
  expect(steady.requests.at(-1)!.headers['traceparent']).toBe(traceparent);

  await submit('broken', 'traced-5');
  const [failed, ...tries] = await traceOf('traced-5');
  expect(failed).toMatchObject({ status: 2, attributes: { 'error.type': 'attempts_exhausted' } });
  expect(tries.map(({ name }) => name).sort()).toEqual(['attempt 1', 'attempt 2', 'attempt 3', 'queue']);
});

test('no span has a prompt, an answer, a credential, or where a node is', async () => {
  const text = collector.text();
  expect(collector.spans.length).toBeGreaterThan(6);
  for (const secret of [
    'secret prompt',
    'secret answer',
    world.plane.admin_key,
    '127.0.0.1',
    'out of memory',
  ])
    expect(text).not.toContain(secret);
});

test('a provider is told of no trace until the operator allows it, and then of the request’s own span', async () => {
  const upstream = await world.backend((_request, response) => void response.end(chatAnswer('x')), ['up']);
  const { id } = await world.plane.send<{ id: string }>('POST', '/api/v1/providers', {
    name: 'up',
    base_url: upstream.url,
  });
  const targets = [{ provider: id, model: 'up' }];
  await world.plane.send('POST', '/api/v1/routes', { name: 'above', targets });
  const asked = async (request_id: string) => {
    const headers = { traceparent: `00-${TRACE}-${PARENT}-01`, 'x-request-id': request_id };
    const reply = await world.plane.chat({ model: 'above', ...prompt }, { headers });
    expect(reply.status).toBe(200);
    const [own] = await traceOf(request_id);
    return { own, sent: upstream.requests.at(-1)!.headers['traceparent'] };
  };
  expect((await asked('traced-6')).sent).toBeUndefined();
  await world.plane.restart({ FLOTILLA_TRACE_PROVIDERS: 'on' });
  const { own, sent } = await asked('traced-7');
  expect(sent).toBe(`00-${TRACE}-${own.span_id}-01`);
});

test('a collector that is away delays no request', async () => {
  await collector.close();
  for (let sent = 0; sent < 3; sent++) expect((await world.plane.chat(prompt)).status).toBe(200);
  await until('it is told once', () => world.plane.output().includes('Traces cannot be sent'), 60_000);
  expect((await world.plane.chat(prompt)).status).toBe(200);
  collector = await startCollector();
});
