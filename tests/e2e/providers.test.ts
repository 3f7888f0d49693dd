import { once } from 'node:events';
import type {
  AuditView,
  JobView,
  ProviderView,
  RouteExplanation,
  RouteView,
  UsageRow,
} from '@flotilla/protocol';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import {
  DONE,
  type Handler,
  SSE,
  type ScriptedBackend,
  chatAnswer,
  chatChunk,
} from '../support/scripted-backend.ts';
import { openPlane } from '../support/plane.ts';
import { until } from '../support/until.ts';
import { type TestNode, type World, openWorld } from '../support/world.ts';

/** Upstream providers and routes: real upstreams behind a real control plane, and a real node behind them. */
const SECRET_KEY = 's'.repeat(40);
const API_KEY = 'sk-upstream-0123456789abcdef';

const says =
  (text: string): Handler =>
  (_request, response) => {
    response.setHeader('content-type', 'application/json');
    response.end(chatAnswer(text));
  };

let world: World;
let node: TestNode;
let local: ScriptedBackend;
let names = 0;

beforeAll(async () => {
  world = await openWorld({ env: { FLOTILLA_SECRET_KEY: SECRET_KEY } });
  local = await world.backend(says('from the node'));
  node = await world.node({ name: 'attic', backends: [{ url: local.url, slots: 4, probe: 'list' }] });
}, 120_000);
afterAll(() => world.close());
beforeEach(() => {
  local.answer = says('from the node');
  local.requests.length = 0;
});

const unique = (what: string) => `${what}-${++names}`;

async function provider(answer: Handler, more: Record<string, unknown> = {}) {
  const upstream = await world.backend(answer, ['gpt-x']);
  const view = await world.plane.send<ProviderView>('POST', '/api/v1/providers', {
    name: unique('up'),
    base_url: upstream.url,
    api_key: API_KEY,
    ...more,
  });
  return { upstream, id: view.id, name: view.name };
}

function route(name: string, targets: unknown[], more: Record<string, unknown> = {}): Promise<RouteView> {
  return world.plane.send<RouteView>('POST', '/api/v1/routes', { name, targets, ...more });
}

const explain = (model: string) =>
  world.plane.send<RouteExplanation>('POST', '/api/v1/routes/explain', { model });
const shown = (id: string) => world.plane.get<ProviderView>(`/api/v1/providers/${id}`);

async function text(reply: Response): Promise<string> {
  const body = (await reply.json()) as { choices: { message: { content: string } }[] };
  return body.choices[0]!.message.content;
}

async function usageOf(model: string): Promise<UsageRow[]> {
  return (await world.usage()).filter((row) => row.model === model);
}

interface Attempt {
  node: string | null;
  provider: string | null;
  outcome: string;
  message: string | null;
}
const attemptsOf = async (job: string) =>
  (await world.plane.get<{ attempts: Attempt[] }>(`/api/v1/jobs/${job}`)).attempts;

describe('a route', () => {
  test('whose providers answer 500, then 429 with Retry-After, then nothing, is served by the node behind them, with one usage row and the story in the attempts', async () => {
    const broken = await provider((_request, response) => void response.writeHead(500).end('{}'));
    const busy = await provider((_request, response) => {
      response.writeHead(429, { 'retry-after': '30' }).end('{}');
    });
    const silent = await provider(() => undefined, { first_byte_timeout_ms: 300 });
    const name = unique('public');
    await route(name, [
      { provider: broken.name, model: 'gpt-x' },
      { provider: busy.name, model: 'gpt-x' },
      { provider: silent.name, model: 'gpt-x' },
      { model: 'scripted' },
    ]);
    const reply = await world.plane.chat({ model: name });
    expect([reply.status, await text(reply)]).toEqual([200, 'from the node']);
    expect(reply.headers.get('x-flotilla-attempts')).toBe('4');
    expect(reply.headers.get('x-flotilla-node')).toBe('attic');
    const rows = await usageOf(name);
    expect(rows).toMatchObject([
      { outcome: 'succeeded', attempts: 4, node: node.id, provider: null, prompt_tokens: 3 },
    ]);
    expect(await attemptsOf(rows[0]!.job)).toMatchObject([
      { provider: broken.id, node: null, outcome: 'backend_error', message: 'The backend answered 500.' },
      { provider: busy.id, node: null, outcome: 'backend_error', message: 'The backend answered 429.' },
      { provider: silent.id, outcome: 'backend_error', message: 'The backend sent nothing for 0.3 s.' },
      { provider: null, node: node.id, outcome: 'succeeded' },
    ]);
    expect(JSON.parse(local.requests[0]!.body.toString())).toMatchObject({ model: 'scripted' });
    await until(
      'the upstream that said nothing is let go',
      () => silent.upstream.requests[0]?.aborted_ms !== null,
    );
  });

  test('does not ask a provider again before the time that its Retry-After named', async () => {
    const busy = await provider((_request, response) => {
      response.writeHead(429, { 'retry-after': '30' }).end('{}');
    });
    const name = unique('public');
    await route(name, [{ provider: busy.id, model: 'gpt-x' }, { model: 'scripted' }]);
    for (let n = 0; n < 3; n++) expect((await world.plane.chat({ model: name })).status).toBe(200);
    expect(busy.upstream.requests).toHaveLength(1);
    expect(await explain(name)).toMatchObject({
      outcome: 'served',
      targets: [
        { provider: busy.name, chosen: false, places: [{ verdict: 'resting' }] },
        { provider: null, chosen: true },
      ],
    });
  });

  test('that is disabled is a 404 although a node has the model; without the route the node serves it again', async () => {
    expect((await world.plane.chat({ model: 'scripted' })).status).toBe(200);
    const made = await route('scripted', [{ model: 'scripted' }], { enabled: false, aliases: ['s-alias'] });
    for (const model of ['scripted', 's-alias']) {
      const refused = await world.plane.chat({ model });
      const body = (await refused.json()) as { error: { code: string } };
      expect([refused.status, body.error.code]).toEqual([404, 'model_not_found']);
    }
    const { data } = await world.plane.get<{ data: { id: string }[] }>('/v1/models');
    expect(data.map(({ id }) => id)).not.toContain('scripted');
    expect(await explain('scripted')).toMatchObject({ outcome: 'refused', route: 'scripted' });
    await world.plane.send('PATCH', `/api/v1/routes/${made.id}`, { enabled: true });
    const again = await world.plane.chat({ model: 's-alias' });
    expect(await text(again)).toBe('from the node');
    await world.plane.send('DELETE', `/api/v1/routes/${made.id}`);
    expect((await world.plane.chat({ model: 's-alias' })).status).toBe(404);
    expect((await world.plane.chat({ model: 'scripted' })).status).toBe(200);
  });

  test('outranks nodes, goes by its aliases, is listed under both, and reaches the provider under the model’s name there with its key', async () => {
    const up = await provider(says('from upstream'));
    const [name, alias] = [unique('public'), unique('alias')];
    await route(name, [{ provider: up.id, model: 'gpt-x' }], { aliases: [alias] });
    const { data } = await world.plane.get<{ data: { id: string }[] }>('/v1/models');
    expect(data.map(({ id }) => id)).toEqual(expect.arrayContaining([name, alias, 'scripted']));
    const reply = await world.plane.chat({ model: alias });
    expect(await text(reply)).toBe('from upstream');
    expect(reply.headers.get('x-flotilla-provider')).toBe(up.name);
    expect(reply.headers.get('x-flotilla-node')).toBeNull();
    const [seen] = up.upstream.requests;
    expect(seen!.headers.authorization).toBe(`Bearer ${API_KEY}`);
    expect(JSON.parse(seen!.body.toString())).toMatchObject({ model: 'gpt-x' });
    expect(await usageOf(name)).toMatchObject([{ provider: up.id, node: null, completion_tokens: 5 }]);
    expect(await world.nodes()).toHaveLength(1);
  });

  test('is for the keys that may use it, and a key with labels is served by no provider without them', async () => {
    const up = await provider(says('from upstream'), { labels: { zone: 'eu' } });
    const name = unique('public');
    await route(name, [{ provider: up.id, model: 'gpt-x' }]);
    const status = async (body: Record<string, unknown>) => {
      const key = await world.key(body);
      return (await world.plane.chat({ model: name }, { key })).status;
    };
    expect(await status({ allowed_models: [name] })).toBe(200);
    expect(await status({ allowed_models: ['other'] })).toBe(404);
    expect(await status({ node_labels: { zone: 'eu' } })).toBe(200);
    expect(await status({ node_labels: { zone: 'us' } })).toBe(404);
  });

  test('tells beforehand where a request would go, and why not elsewhere', async () => {
    const up = await provider(says('from upstream'));
    const name = unique('public');
    await route(name, [
      { provider: up.id, model: 'gpt-x' },
      { model: 'scripted', labels: { none: 'has' } },
    ]);
    expect(await explain(name)).toMatchObject({
      route: name,
      outcome: 'served',
      summary: `It would go to the provider ${up.name}, as gpt-x.`,
      targets: [
        { provider: up.name, chosen: true, places: [{ name: up.name, verdict: 'could take it' }] },
        { provider: null, chosen: false, places: [{ name: 'attic', verdict: 'labels' }] },
      ],
    });
    await world.plane.send('PATCH', `/api/v1/providers/${up.id}`, { enabled: false });
    expect(await explain(name)).toMatchObject({
      outcome: 'refused',
      targets: [{ places: [{ verdict: 'cordoned', reason: 'it is disabled' }] }, {}],
    });
    const refused = await world.plane.chat({ model: name });
    expect(refused.status).toBe(503);
    expect(up.upstream.requests).toHaveLength(0);
  });
});

describe('a detached job on a route', () => {
  async function submitted(model: string) {
    const body = { model, request: { messages: [{ role: 'user', content: 'Hello' }] } };
    const { id } = await world.plane.send<{ id: string }>('POST', '/api/v1/jobs', body);
    return until(`${id} has ended`, async () => {
      const job = await world.plane.get<JobView>(`/api/v1/jobs/${id}`);
      return job.finished_at !== null && job;
    });
  }

  test('goes to its targets in order, providers as well, until one serves it', async () => {
    const broken = await provider((_request, response) => void response.writeHead(500).end('{}'));
    const name = unique('public');
    await route(name, [{ provider: broken.name, model: 'gpt-x' }, { model: 'scripted' }], {
      aliases: [`${name}-too`],
    });
    const job = await submitted(`${name}-too`);
    expect(job).toMatchObject({
      model: name,
      state: 'succeeded',
      attempts: [
        { provider: broken.id, node: null, outcome: 'backend_error' },
        { provider: null, node: node.id, outcome: 'succeeded' },
      ],
      result: JSON.parse(chatAnswer('from the node')),
    });
    expect(JSON.parse(broken.upstream.requests[0]!.body.toString())).toMatchObject({ model: 'gpt-x' });
    expect(JSON.parse(local.requests[0]!.body.toString())).toMatchObject({ model: 'scripted' });
    expect(await usageOf(name)).toMatchObject([{ job: job.id, node: node.id, provider: null, attempts: 2 }]);
  });

  test('that a provider serves has its answer and its usage, and lets it go when it is cancelled', async () => {
    const upstream = await provider(says('from above'));
    const name = unique('public');
    await route(name, [{ provider: upstream.name, model: 'gpt-x' }]);
    const job = await submitted(name);
    expect(job).toMatchObject({
      state: 'succeeded',
      attempts: [{ provider: upstream.id, node: null }],
      result: JSON.parse(chatAnswer('from above')),
    });
    expect(await usageOf(name)).toMatchObject([{ job: job.id, node: null, provider: upstream.id }]);

    const { promise } = Promise.withResolvers<void>();
    upstream.upstream.answer = () => promise;
    const body = { model: name, request: { messages: [] } };
    const { id } = await world.plane.send<{ id: string }>('POST', '/api/v1/jobs', body);
    const running = await until('it runs', async () => {
      const view = await world.plane.get<JobView>(`/api/v1/jobs/${id}`);
      return view.state === 'running' && view;
    });
    expect(running.attempts).toMatchObject([{ provider: upstream.id, node: null, outcome: 'open' }]);
    await world.plane.send('POST', `/api/v1/jobs/${id}/cancel`, {});
    await until('the upstream is free', () => upstream.upstream.in_flight === 0);
    const cancelled = await world.plane.get<JobView>(`/api/v1/jobs/${id}`);
    expect(cancelled.attempts).toMatchObject([{ provider: upstream.id, node: null, outcome: 'cancelled' }]);
  });
});

describe('a provider that leads back', () => {
  const here = () => `${world.plane.url}/v1`;
  const add = (base_url: string, more: Record<string, unknown> = {}) =>
    world.plane.send<ProviderView>('POST', '/api/v1/providers', {
      name: unique('loop'),
      base_url,
      api_key: world.plane.admin_key,
      ...more,
    });
  const refusal = async (reply: Response) => {
    const { error } = (await reply.json()) as { error: { code: string; message: string } };
    return `${reply.status} ${error.code}: ${error.message}`;
  };

  test('to this control plane is known by its probe, refused at once by its name, and passed by where somebody is behind it', async () => {
    const loop = await add(here());
    const probed = await world.plane.send<ProviderView>('POST', `/api/v1/providers/${loop.id}/probe`);
    const reason = expect.stringContaining('leads back to this control plane');
    expect(probed).toMatchObject({ health: 'degraded', reason, alarms: [reason] });
    const [alone, backed] = [unique('public'), unique('public')];
    for (const probe of ['models', 'none']) {
      const again = await add(here(), { probe });
      await route(`${alone}-${probe}`, [{ provider: again.id, model: `${alone}-${probe}` }]);
      const reply = await world.plane.chat({ model: `${alone}-${probe}`, stream: probe === 'none' });
      expect(reply.headers.get('x-should-retry')).toBe('false');
      expect(await refusal(reply)).toMatch(
        new RegExp(`^508 loop_detected: The provider ${again.name} leads back`),
      );
      // A refusal does not wait for its row.
      const row = await until('it is recorded', async () => (await usageOf(`${alone}-${probe}`))[0]);
      expect(row).toMatchObject({ outcome: 'loop_detected', status: 508, attempts: 1, provider: again.id });
    }
    await route(backed, [{ provider: loop.id, model: backed }, { model: 'scripted' }]);
    const reply = await world.plane.chat({ model: backed });
    expect([await text(reply), reply.headers.get('x-flotilla-attempts')]).toEqual(['from the node', '2']);
  });

  test('is told from one that has reached a limit of its host', async () => {
    const refuses: Handler = (_request, response) =>
      void response.writeHead(508).end('Resource Limit Is Reached');
    const up = await provider(refuses);
    up.upstream.answer_list = (response) => void response.writeHead(508).end('Resource Limit Is Reached');
    await until('it was asked', async () => (await shown(up.id)).reason !== 'it was not asked yet');
    expect(await shown(up.id)).toMatchObject({ reason: 'its list of models answered 508', alarms: [] });
    const name = unique('public');
    await route(name, [{ provider: up.id, model: 'gpt-x' }]);
    expect(await refusal(await world.plane.chat({ model: name }))).toBe(
      '502 attempts_exhausted: The backend answered 508.',
    );
  });

  test('over another fleet is refused when it comes round; the other is no worse for it, and is told of nobody on the way', async () => {
    const plane = await openPlane({ FLOTILLA_SECRET_KEY: SECRET_KEY });
    try {
      const call = (path: string, body: unknown) => plane.call('POST', path, { key: plane.admin_key, body });
      const upstream = await world.backend(says('from far above'), ['gpt-x']);
      await call('/api/v1/providers', { name: 'first', base_url: here(), api_key: world.plane.admin_key });
      await call('/api/v1/providers', { name: 'far', base_url: upstream.url });
      const other = await add(`${plane.control.url}/v1`, { api_key: plane.admin_key });
      const [round, backed] = [unique('public'), unique('public')];
      for (const name of [round, backed]) {
        await call('/api/v1/routes', { name, targets: [{ provider: 'first', model: name }] });
        const last = name === backed ? [{ model: 'scripted' }] : [];
        await route(name, [{ provider: other.id, model: name }, ...last]);
      }
      expect(await refusal(await world.plane.chat({ model: round }))).toMatch(
        new RegExp(`^508 loop_detected: The provider ${other.name} leads back`),
      );
      expect(await text(await world.plane.chat({ model: backed }))).toBe('from the node');
      expect(await shown(other.id)).toMatchObject({ health: 'healthy', alarms: [] });

      await call('/api/v1/routes', { name: 'onwards', targets: [{ provider: 'far', model: 'gpt-x' }] });
      const onwards = unique('public');
      await route(onwards, [{ provider: other.id, model: 'onwards' }]);
      const reply = await world.plane.chat({ model: onwards }, { headers: { via: '1.1 proxy.internal' } });
      expect(await text(reply)).toBe('from far above');
      expect(upstream.requests[0]!.headers.via).toMatch(/^1\.1 flotilla-\w+, 1\.1 flotilla-\w+$/);
    } finally {
      await plane.close();
    }
  });
});

describe('a provider', () => {
  test('streams through byte by byte', async () => {
    const parts = [chatChunk('Hel'), ': a comment\r\n\r\n', chatChunk('lo ü'), chatChunk('', 'stop'), DONE];
    const up = await provider(async (_request, response) => {
      response.writeHead(200, SSE);
      for (const part of parts) {
        response.write(part);
        await new Promise((next) => setImmediate(next));
      }
      response.end();
    });
    const name = unique('public');
    await route(name, [{ provider: up.id, model: 'gpt-x' }]);
    const reply = await world.plane.chat({ model: name, stream: true });
    expect(reply.headers.get('content-type')).toBe('text/event-stream');
    expect(await reply.text()).toBe(parts.join(''));
    expect(await usageOf(name)).toMatchObject([{ outcome: 'succeeded', provider: up.id, estimated: true }]);
  });

  test('is read no faster than the client reads, and what it sends arrives whole', async () => {
    const piece = chatChunk('x'.repeat(60_000));
    const pieces = 600;
    let sent = 0;
    const up = await provider(async (_request, response) => {
      response.writeHead(200, SSE);
      for (; sent < pieces; sent++) {
        if (!response.write(piece)) await once(response, 'drain');
      }
      response.end(chatChunk('', 'stop') + DONE);
    });
    const name = unique('public');
    await route(name, [{ provider: up.id, model: 'gpt-x' }]);
    const reply = await world.plane.chat({ model: name, stream: true });
    let before = -1;
    let still = 0;
    await until('the upstream waits for the client', () => {
      still = sent === before ? still + 1 : 0;
      before = sent;
      return sent > 0 && still >= 20;
    });
    // Windows and the buffers of sockets, of 36 MB.
    expect(sent).toBeLessThan(pieces / 2);
    expect((await reply.text()).length).toBe(piece.length * pieces + (chatChunk('', 'stop') + DONE).length);
  });

  test('is let go within half a second when its client goes away, and its slot with it', async () => {
    const up = await provider(
      (_request, response) => {
        response.writeHead(200, SSE);
        response.write(chatChunk('Hel'));
      },
      { concurrency: 1 },
    );
    const name = unique('public');
    await route(name, [{ provider: up.id, model: 'gpt-x' }]);
    const leave = new AbortController();
    const reply = await world.plane.chat({ model: name, stream: true }, { signal: leave.signal });
    await reply.body!.getReader().read();
    const left_ms = performance.now();
    leave.abort();
    await until('the upstream is let go', () => up.upstream.requests[0]?.aborted_ms !== null);
    expect(up.upstream.requests[0]!.aborted_ms! - left_ms).toBeLessThan(500);
    await until('its slot is free', async () => (await shown(up.id)).in_flight === 0);
    const row = await until('it is recorded', async () => (await usageOf(name))[0]);
    expect(row).toMatchObject({ outcome: 'cancelled', provider: up.id });
  });

  test('is asked no more at once than it may be; the others wait for it, and all are served', async () => {
    const waiting: (() => void)[] = [];
    let asked = 0;
    let most = 0;
    const up = await provider(
      (request, response) => {
        most = Math.max(most, ++asked);
        waiting.push(() => {
          // Before the answer: the next one may be asked before this side has heard that it is over.
          asked--;
          void says('done')(request, response);
        });
      },
      { concurrency: 2 },
    );
    const name = unique('public');
    await route(name, [{ provider: up.id, model: 'gpt-x' }]);
    const replies = Array.from({ length: 6 }, () => world.plane.chat({ model: name }));
    await until('two are being asked', () => waiting.length === 2);
    for (let served = 0; served < 6; served++) {
      await until('one is being asked', () => waiting.length > 0);
      waiting.shift()!();
    }
    for (const reply of await Promise.all(replies)) expect(reply.status).toBe(200);
    expect(most).toBe(2);
  });

  test('is passed by when it is full and the next target is free', async () => {
    let release = () => undefined as void;
    const up = await provider(
      (request, response) => {
        release = () => void says('from upstream')(request, response);
      },
      { concurrency: 1 },
    );
    const name = unique('public');
    await route(name, [{ provider: up.id, model: 'gpt-x' }, { model: 'scripted' }]);
    const first = world.plane.chat({ model: name });
    await until('the provider is full', () => up.upstream.in_flight === 1);
    expect(await text(await world.plane.chat({ model: name }))).toBe('from the node');
    release();
    expect(await text(await first)).toBe('from upstream');
  });

  test('that refuses our key is our fault: the next target serves; alone, 502 without a word of it, and an alarm', async () => {
    const up = await provider((request, response) => {
      response.writeHead(request.headers.authorization === 'Bearer sk-new' ? 200 : 401, {
        'content-type': 'application/json',
      });
      response.end(
        request.headers.authorization === 'Bearer sk-new' ? chatAnswer('new key') : `{"error":"${API_KEY}"}`,
      );
    });
    const [alone, backed] = [unique('public'), unique('public')];
    await route(alone, [{ provider: up.id, model: 'gpt-x' }]);
    await route(backed, [{ provider: up.id, model: 'gpt-x' }, { model: 'scripted' }]);
    const refused = await world.plane.chat({ model: alone });
    const body = await refused.text();
    expect([refused.status, JSON.parse(body)]).toMatchObject([502, { error: { code: 'backend_error' } }]);
    expect(body).not.toContain(API_KEY);
    expect(body).not.toContain(String(up.upstream.port));
    expect(await shown(up.id)).toMatchObject({
      health: 'down',
      alarms: [expect.stringContaining('refuses the key')],
    });
    expect(world.plane.output()).toContain('provider: it refuses the key');
    expect(await text(await world.plane.chat({ model: backed }))).toBe('from the node');
    // Another key is in force at once, without a restart.
    await world.plane.send('PATCH', `/api/v1/providers/${up.id}`, { api_key: 'sk-new' });
    expect(await text(await world.plane.chat({ model: alone }))).toBe('new key');
    expect(await shown(up.id)).toMatchObject({ health: 'healthy', alarms: [] });
  });

  test('that resets connections, or redirects, is passed by unseen', async () => {
    const reset = await provider((_request, response) => void response.socket!.resetAndDestroy());
    const elsewhere = await provider((_request, response) => {
      response.writeHead(307, { location: `${local.url}/chat/completions` }).end();
    });
    const name = unique('public');
    await route(name, [
      { provider: reset.id, model: 'gpt-x' },
      { provider: elsewhere.id, model: 'gpt-x' },
      { model: 'scripted' },
    ]);
    const reply = await world.plane.chat({ model: name });
    expect(await text(reply)).toBe('from the node');
    expect(reply.headers.get('x-flotilla-attempts')).toBe('3');
    expect(local.requests).toHaveLength(1);
  });

  test('says no to the client in its own words where the request is at fault', async () => {
    const up = await provider((_request, response) => {
      const headers = {
        'content-type': 'application/json',
        'openai-organization': 'ours',
        'openai-model': 'x',
      };
      response.writeHead(400, headers).end('{"error":{"message":"too long"}}');
    });
    const name = unique('public');
    await route(name, [{ provider: up.id, model: 'gpt-x' }, { model: 'scripted' }]);
    const reply = await world.plane.chat({ model: name });
    expect([reply.status, await reply.text()]).toEqual([400, '{"error":{"message":"too long"}}']);
    expect(reply.headers.get('openai-model')).toBe('x');
    expect(reply.headers.has('openai-organization')).toBe(false);
  });

  test('that repeats our key has it masked, in whatever it says, however its pieces are cut', async () => {
    const JSON_HEAD = { 'content-type': 'application/json', 'openai-note': `for ${API_KEY}` };
    const said = (key: string) => `{"error":{"message":"Incorrect API key provided: ${key}. ${key}"}}`;
    let status = 400;
    const up = await provider(async (request, response) => {
      const streams = status === 200 && request.body.includes('"stream":true');
      response.writeHead(status, streams ? { ...JSON_HEAD, ...SSE } : JSON_HEAD);
      const whole = streams ? `${chatChunk('Hel')}data: ${said(API_KEY)}\n\n` : said(API_KEY);
      const half = whole.indexOf(API_KEY) + 7;
      response.write(whole.slice(0, half));
      await until('the first half has left', () => response.writableLength === 0);
      await new Promise((next) => setImmediate(next));
      response.end(whole.slice(half));
    });
    const name = unique('public');
    await route(name, [{ provider: up.id, model: 'gpt-x' }]);
    for (const stream of [false, true]) {
      for (status of [400, 402, 422]) {
        const reply = await world.plane.chat({ model: name, stream });
        expect([reply.status, await reply.text()]).toEqual([status, said('***')]);
        expect(reply.headers.get('openai-note')).toBe('for ***');
      }
    }
    status = 400;
    const body = { model: name, request: { messages: [] } };
    const { id } = await world.plane.send<{ id: string }>('POST', '/api/v1/jobs', body);
    const job = await until('the detached job has ended', async () => {
      const view = await world.plane.get<JobView>(`/api/v1/jobs/${id}`);
      return view.finished_at !== null && view;
    });
    expect(job.result).toEqual(JSON.parse(said('***')));
    status = 200;
    const served = await world.plane.chat({ model: name, stream: true });
    expect(await served.text()).toContain(said('***'));
    status = 403;
    for (const stream of [false, true]) {
      // Asked for its models it is taken for well enough to be tried again.
      await world.plane.send('POST', `/api/v1/providers/${up.id}/probe`);
      const refused = await world.plane.chat({ model: name, stream });
      expect([refused.status, await refused.text()]).toEqual([
        502,
        expect.not.stringContaining('Incorrect API key'),
      ]);
    }
    expect(world.plane.output()).not.toContain(API_KEY);
  });

  test('with a word for a key may use that word where it serves, and one that is no secret where it refuses', async () => {
    const up = await provider(says('ask changeme'), { api_key: 'changeme' });
    const name = unique('public');
    await route(name, [{ provider: up.id, model: 'gpt-x' }]);
    expect(await text(await world.plane.chat({ model: name }))).toBe('ask changeme');
    up.upstream.answer = (_request, response) => void response.writeHead(400).end('no key changeme');
    expect(await (await world.plane.chat({ model: name })).text()).toBe('no key ***');
    await world.plane.send('PATCH', `/api/v1/providers/${up.id}`, { api_key: 'null' });
    up.upstream.answer = (_request, response) => void response.writeHead(400).end('{"error":null}');
    expect(await (await world.plane.chat({ model: name })).text()).toBe('{"error":null}');
  });

  test('is probed: one that is gone is down, and back when it answers again', async () => {
    const up = await provider(says('from upstream'));
    const name = unique('public');
    await route(name, [{ provider: up.id, model: 'gpt-x' }, { model: 'scripted' }]);
    await until('it was asked', async () => (await shown(up.id)).health === 'healthy');
    expect((await shown(up.id)).models).toEqual(['gpt-x']);
    await up.upstream.stop();
    const probe = () => world.plane.send<ProviderView>('POST', `/api/v1/providers/${up.id}/probe`);
    expect(await probe()).toMatchObject({ health: 'down', reason: 'the connection was refused' });
    const reply = await world.plane.chat({ model: name });
    expect([await text(reply), reply.headers.get('x-flotilla-attempts')]).toEqual(['from the node', '1']);
    await up.upstream.start();
    expect(await probe()).toMatchObject({ health: 'healthy', reason: null });
    expect(await text(await world.plane.chat({ model: name }))).toBe('from upstream');
  });

  test('that a route names cannot be deleted, names are taken once, and what an address may not have is refused', async () => {
    const up = await provider(says('x'));
    const name = unique('public');
    const made = await route(name, [{ provider: up.id, model: 'gpt-x' }]);
    const refusal = (method: string, path: string, body?: unknown) =>
      world.plane.send(method, path, body).then(
        () => 'done',
        (error: unknown) => String(error),
      );
    expect(await refusal('DELETE', `/api/v1/providers/${up.id}`)).toMatch(/409.*conflict/);
    expect(await refusal('POST', '/api/v1/providers', { name: up.name, base_url: up.upstream.url })).toMatch(
      /name_taken/,
    );
    expect(
      await refusal('POST', '/api/v1/routes', {
        name: unique('r'),
        aliases: [name],
        targets: [{ model: 'm' }],
      }),
    ).toMatch(/name_taken/);
    expect(
      await refusal('POST', '/api/v1/routes', { name: unique('r'), targets: [{ provider: 'none' }] }),
    ).toMatch(/400.*no provider/);
    for (const base_url of ['ftp://x/v1', 'http://u:p@x/v1', 'http://x/v1?key=1', 'x']) {
      expect(await refusal('POST', '/api/v1/providers', { name: unique('up'), base_url })).toMatch(/400/);
    }
    await world.plane.send('DELETE', `/api/v1/routes/${made.id}`);
    await world.plane.send('DELETE', `/api/v1/providers/${up.id}`);
    expect(await refusal('GET', `/api/v1/providers/${up.id}`)).toMatch(/404/);
  });

  test('and its route are there again after a restart with another secret key, its key sealed with that; a detached job that it had is asked anew', async () => {
    const up = await provider(() => undefined);
    const name = unique('public');
    await route(name, [{ provider: up.id, model: 'gpt-x' }]);
    const body = { model: name, request: { messages: [] } };
    const { id } = await world.plane.send<{ id: string }>('POST', '/api/v1/jobs', body);
    const job = () => world.plane.get<JobView>(`/api/v1/jobs/${id}`);
    await until('the detached job runs', async () => (await job()).state === 'running');
    up.upstream.answer = says('from upstream');
    const keys = { FLOTILLA_SECRET_KEY: 'n'.repeat(40), FLOTILLA_SECRET_KEY_PREVIOUS: SECRET_KEY };
    await world.plane.restart(keys);
    expect(await text(await world.plane.chat({ model: name }))).toBe('from upstream');
    expect(up.upstream.requests.at(-1)!.headers.authorization).toBe(`Bearer ${API_KEY}`);
    const { data } = await world.plane.get<{ data: AuditView[] }>('/api/v1/audit?action=secret_key.replace');
    expect(data).toMatchObject([{ key: null, address: null, change: { secrets: expect.any(Number) } }]);
    const ended = await until('the detached job has ended', async () => {
      const view = await job();
      return view.finished_at !== null && view;
    });
    expect(ended.attempts).toMatchObject([
      { provider: up.id, node: null, message: 'The control plane that asked it was stopped.' },
      { provider: up.id, node: null, outcome: 'succeeded' },
    ]);
    for (const secret of Object.values(keys)) expect(world.plane.output()).not.toContain(secret);
  }, 60_000);
});
