import { ROUTES, type Route } from '@flotilla/protocol';
import OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { enrolHttpNode, type RawHttpNode, shellScript, startShellNode } from '../support/http-node.ts';
import { chatAnswer, chatChunk, DONE, SSE } from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';
import { type World, openWorld } from '../support/world.ts';

/** The node link over plain HTTP: a whole node in shell, and then every promise of a call by itself. */
/** A beat of a shell is half a dozen processes: not for an interval that only tests of the daemon use. */
const HEARTBEAT_MS = 2000;
let world: World;

beforeAll(async () => {
  world = await openWorld({ heartbeat_ms: HEARTBEAT_MS });
}, 60_000);
afterAll(() => world.close());

const view = (id: string) =>
  world.plane.get<{ state: string; why: { summary: string } }>(`/api/v1/nodes/${id}`);
const chat = (model: string, more: Record<string, unknown> = {}, init: { signal?: AbortSignal } = {}) =>
  world.plane.chat({ model, ...more }, init);
const nodeIs = (id: string, state: string) =>
  until(`the node is ${state}`, async () => (await view(id)).state === state);

describe('the node of the guide', () => {
  test('serves a stream to the official SDK, is cancelled within a second, and is drained', async () => {
    let answer: 'short' | 'endless' = 'short';
    const backend = await world.backend(
      (_request, response) => {
        response.writeHead(200, SSE);
        if (answer === 'short') {
          response.write(chatChunk('Hello'));
          response.write(chatChunk(' world', 'stop'));
          response.end(DONE);
          return;
        }
        const timer = setInterval(() => response.write(chatChunk('more')), 20);
        response.on('close', () => clearInterval(timer));
      },
      ['shell-model'],
    );
    const node = await startShellNode(world, 'shell', backend.url);
    try {
      const id = await until('it is enrolled', node.id);
      await nodeIs(id, 'online');
      const openai = new OpenAI({
        baseURL: `${world.plane.url}/v1`,
        apiKey: world.plane.admin_key,
        maxRetries: 0,
      });
      const ask = { model: 'shell-model', messages: [{ role: 'user' as const, content: 'Hello' }] };

      let text = '';
      for await (const chunk of await openai.chat.completions.create({ ...ask, stream: true })) {
        text += chunk.choices[0]?.delta.content ?? '';
      }
      expect(text).toBe('Hello world');
      const usage = await until('it is recorded', async () =>
        (await world.usage()).find(({ node: by }) => by === id),
      );
      expect(usage).toMatchObject({ outcome: 'succeeded', estimated: true, model: 'shell-model' });
      expect(usage.completion_tokens).toBeGreaterThan(0);

      answer = 'endless';
      const leaving = new AbortController();
      const stream = await openai.chat.completions.create(
        { ...ask, stream: true },
        { signal: leaving.signal },
      );
      for await (const _first of stream) break;
      const endless = backend.requests.at(-1)!;
      const left_ms = performance.now();
      leaving.abort();
      await until('its backend is free', () => endless.aborted_ms !== null);
      expect(endless.aborted_ms! - left_ms).toBeLessThan(1000);
      await until(
        'its slot is free',
        async () => (await world.plane.get<Pooled>(`/api/v1/nodes/${id}`)).pools[0]?.reserved === 0,
      );

      // The operator's drain: what runs is finished, nothing comes after it.
      const last = await openai.chat.completions.create({ ...ask, stream: true });
      const reader = last[Symbol.asyncIterator]();
      await reader.next();
      await world.plane.send('POST', `/api/v1/nodes/${id}/drain`, {});
      await expect(openai.chat.completions.create(ask)).rejects.toMatchObject({
        status: 503,
        code: 'no_capacity',
      });
      expect((await reader.next()).done).toBe(false);
      last.controller.abort();
      await until('it is drained', async () => (await view(id)).why.summary.includes('it is drained'));

      // Its own: it says goodbye.
      node.child.kill('SIGTERM');
      expect(await node.ended).toBe(0);
      await until('it has gone', async () => (await view(id)).why.summary.includes('it said goodbye'));
    } finally {
      await node.close();
    }
  });

  test('can be told to go while no control plane is there', async () => {
    const away = { credential: 'fln_of_before', url: 'http://127.0.0.1:9' };
    const node = await startShellNode(world, 'alone', 'http://127.0.0.1:9', away);
    try {
      await until('it has tried', () => node.output().includes('curl: (7)'));
      node.child.kill('SIGTERM');
      expect(await node.ended).toBe(0);
    } finally {
      await node.close();
    }
  });

  test('is under a hundred lines', async () => {
    expect((await shellScript()).trimEnd().split('\n').length).toBeLessThan(100);
  });
});

interface Pooled {
  pools: { reserved: number }[];
}

/** A node that is registered and beats until the test ends. */
async function withNode(name: string, run: (node: RawHttpNode) => Promise<void>, more = {}): Promise<void> {
  const node = await enrolHttpNode(world, name);
  await node.register(more);
  const stop = node.beats(HEARTBEAT_MS / 2);
  try {
    await run(node);
  } finally {
    stop();
    await node.call('deregister', { body: {} });
  }
}

const at = ({ job, attempt }: { job: string; attempt: number }, what: string) =>
  `jobs/${job}/attempts/${attempt}/${what}`;
const event = (text: string) => chatChunk(text);

describe('a lease call', () => {
  test('gives an offer again until it is acknowledged, and then no more', () =>
    withNode('repeats', async (node) => {
      const reply = chat('repeats');
      const first = await node.lease(0);
      expect(first.messages).toMatchObject([
        { type: 'offer', attempt: 1, operation: 'chat', streaming: false },
      ]);
      // The answer to that call was lost: the node asks as before.
      const again = await node.lease(0);
      expect(again).toEqual(first);
      const after = await node.lease(again.ack, 0);
      expect(after.messages).toEqual([]);

      const offer = first.messages[0]!;
      const request = await node.call(at(offer, 'request'), { method: 'GET' });
      expect(JSON.parse(request.text)).toMatchObject({ model: 'repeats' });
      await node.call(at(offer, 'output'), { body: chatAnswer('Done.') });
      expect((await node.call(at(offer, 'complete'), { body: {} })).json).toEqual({ outcome: 'accepted' });
      // The answer to that was lost too: the node hears that its result is here.
      expect((await node.call(at(offer, 'complete'), { body: {} })).json).toEqual({ outcome: 'duplicate' });
      const never = { ...offer, attempt: offer.attempt + 1 };
      expect((await node.call(at(never, 'complete'), { body: {} })).json).toEqual({ outcome: 'stale' });
      expect(await (await reply).text()).toBe(chatAnswer('Done.'));
    }));

  test('does not outlast the beat that says the node is going', () =>
    withNode('going', async (node) => {
      const began_ms = performance.now();
      const waiting = node.lease(0, 25_000);
      // A beat that comes before the call has begun to wait ends nothing: the next one does.
      const going = setInterval(() => void node.call('heartbeat', { body: { draining: true } }), 100);
      expect((await waiting.finally(() => clearInterval(going))).messages).toEqual([]);
      expect(performance.now() - began_ms).toBeLessThan(20_000);
    }));

  test('tells a cancel at once, and the slot is free with the release', () =>
    withNode('cancels', async (node) => {
      const leaving = new AbortController();
      const reply = chat('cancels', { stream: true }, { signal: leaving.signal });
      const offer = await node.next('offer');
      await node.call(at(offer, 'started'));
      const told = node.next('cancel');
      const left_ms = performance.now();
      leaving.abort();
      await reply.catch(() => undefined);
      expect(await told).toMatchObject({ job: offer.job, attempt: offer.attempt });
      expect(performance.now() - left_ms).toBeLessThan(1000);
      const reserved = async () =>
        (await world.plane.get<Pooled>(`/api/v1/nodes/${node.id}`)).pools[0]!.reserved;
      expect(await reserved()).toBe(1);
      expect((await node.call(at(offer, 'output'), { body: event('late') })).json.error.code).toBe(
        'conflict',
      );
      expect((await node.call(at(offer, 'released'), { body: {} })).status).toBe(204);
      expect(await reserved()).toBe(0);
    }));

  test('a rejected offer goes to who takes it', () =>
    withNode('rejects', async (node) => {
      const reply = chat('rejects');
      const first = await node.next('offer');
      await node.call(at(first, 'reject'), { body: { reason: 'no_slot' } });
      const second = await node.next('offer');
      expect(second).toMatchObject({ job: first.job, attempt: 2 });
      await node.call(at(second, 'output'), { body: chatAnswer('Yes.') });
      await node.call(at(second, 'complete'));
      expect((await reply).status).toBe(200);
    }));

  test('has no detached job: such a node does not stop by its own clock, and the job waits for one that does', () =>
    withNode('unfenced', async (node) => {
      const job = { model: 'unfenced', request: { messages: [] } };
      const { id } = await world.plane.send<{ id: string }>('POST', '/api/v1/jobs', job);
      const reply = chat('unfenced');
      // What is attached comes, past it.
      const offer = await node.next('offer');
      expect(offer.job).not.toBe(id);
      expect((await node.lease(undefined, 0)).messages).toEqual([]);
      expect(await world.plane.get(`/api/v1/jobs/${id}`)).toMatchObject({ state: 'queued', attempts: [] });
      await node.call(at(offer, 'output'), { body: chatAnswer('Yes.') });
      await node.call(at(offer, 'complete'), { body: {} });
      expect((await reply).status).toBe(200);
      await world.plane.send('POST', `/api/v1/jobs/${id}/cancel`, {});
    }));

  test('says what the operator wishes', () =>
    withNode('wishes', async (node) => {
      expect((await node.lease(0, 0)).desired).toEqual({ cordoned: false });
      await world.plane.send('POST', `/api/v1/nodes/${node.id}/drain`, { deadline_ms: 60_000 });
      const { desired } = await node.lease(0, 0);
      expect(desired).toMatchObject({ cordoned: true });
      expect(desired.drain_ms).toBeGreaterThan(30_000);
    }));
});

describe('a session', () => {
  test('is the latest registration’s: an older or a foreign one is told so', () =>
    withNode(
      'sessions',
      async (node) => {
        const old = node.session;
        await node.register({ boot_id: 'boot-same' });
        const foreign = await enrolHttpNode(world, 'foreign');
        for (const [caller, session] of [
          [node, old],
          [node, 'nonsense'],
          [foreign, node.session],
        ] as const) {
          const reply = await caller.call('heartbeat', { query: { session }, body: {} });
          expect([reply.status, reply.json.error.code]).toEqual([409, 'wrong_session']);
        }
        expect((await node.call('heartbeat', { body: {} })).status).toBe(200);
      },
      { boot_id: 'boot-same' },
    ));

  test('of a second process with its credential is refused while the first answers, and takes over when it does not', () =>
    withNode('twice', async (node) => {
      const { session } = node;
      let leasing = true;
      const leases = (async () => {
        while (leasing) await node.call('lease', { query: { session, wait_ms: 2000 } });
      })();
      const second = { boot_id: 'boot-second', models: ['twice'] };
      const refused = await node.call('register', { body: second });
      expect([refused.status, refused.json.error.code]).toEqual([409, 'node_in_use']);
      expect((await node.call('heartbeat', { body: {} })).status).toBe(200);

      // The first falls silent altogether.
      leasing = false;
      await leases;
      node.session = 'none';
      const taken = await until('the second may come in', async () => {
        const reply = await node.call('register', { body: second });
        return reply.status === 200 ? (reply.json as unknown as { session: string }) : undefined;
      });
      node.session = taken.session;
      const back = await node.call('register', { body: { boot_id: 'boot-twice-1', models: [] } });
      expect([back.status, back.json.error.code]).toEqual([409, 'node_in_use']);
      expect((await node.call('heartbeat', { query: { session }, body: {} })).json.error.code).toBe(
        'wrong_session',
      );
    }));

  test('ends at once when the credential is withdrawn, and so does what it was sending', async () => {
    const node = await enrolHttpNode(world, 'revoked');
    await node.register();
    const reply = chat('revoked', { stream: true });
    const offer = await node.next('offer');
    const { body, push } = piecewise();
    const output = node.call(at(offer, 'output'), { body });
    push(event('first'));
    expect((await reply).status).toBe(200);
    const lease = node.call('lease', { query: { wait_ms: 30_000 } });
    const began_ms = performance.now();
    await world.plane.send('POST', `/api/v1/nodes/${node.id}/revoke`);
    expect((await lease).json.error.code).toBe('revoked');
    expect((await output).json.error.code).toBe('conflict');
    expect(performance.now() - began_ms).toBeLessThan(1000);
    expect((await node.call('register', { body: { boot_id: 'b', models: [] } })).json.error.code).toBe(
      'revoked',
    );
    expect(await (await reply).text()).not.toContain('data: [DONE]');
  });

  test('without beats is over, however long its lease call is open, and its work moves', async () => {
    const backend = await world.backend(
      (_request, response) => void response.end(chatAnswer('Moved.')),
      ['silent'],
    );
    const other = await world.node({ name: 'other', backends: [{ url: backend.url }] });
    await world.plane.send('POST', `/api/v1/nodes/${other.id}/cordon`);
    const node = await enrolHttpNode(world, 'silent');
    await node.register();
    const reply = chat('silent');
    const offer = await node.next('offer');
    await node.call(at(offer, 'started'));
    const lease = node.call('lease', { query: { wait_ms: 30_000 } });
    await world.plane.send('POST', `/api/v1/nodes/${other.id}/uncordon`);
    expect(await (await reply).text()).toBe(chatAnswer('Moved.'));
    const told = await lease;
    expect(told.status === 200 ? told.json : told.json.error).toMatchObject(
      told.status === 200 ? { messages: [{ type: 'abandon' }] } : { code: 'wrong_session' },
    );
    await nodeIs(node.id, 'offline');
    expect((await node.call('heartbeat', { body: {} })).json.error.code).toBe('wrong_session');
  });

  test('can change what it serves with a beat, and be down', () =>
    withNode('changes', async (node) => {
      await node.call('heartbeat', { body: { models: ['changes', 'changes-more'] } });
      const reply = chat('changes-more');
      const offer = await node.next('offer');
      await node.call(at(offer, 'fail'), { body: { message: 'No.', retryable: false } });
      expect((await reply).status).toBe(502);
      const model = { models: ['changes-down'], health: 'down', reason: 'it burns' };
      await node.call('heartbeat', { body: model });
      expect((await chat('changes-down')).status).toBe(503);
      expect((await view(node.id)).why.summary).toContain('it burns');
    }));
});

describe('output', () => {
  test('comes in pieces, a repeated one once, and a hole is refused with where to go on', () =>
    withNode('pieces', async (node) => {
      const reply = chat('pieces', { stream: true, stream_options: { include_usage: false } });
      const offer = await node.next('offer');
      const whole = event('a') + event('ü') + DONE;
      const bytes = Buffer.from(whole);
      const send = (from: number, to: number) =>
        node.call(at(offer, 'output'), { query: { offset: from }, body: bytes.subarray(from, to) });
      expect((await send(0, 100)).json).toMatchObject({ acked_offset: 100 });
      expect((await send(50, 150)).json).toMatchObject({ acked_offset: 150 });
      const hole = await send(151, 160);
      expect([hole.status, hole.json.error.code]).toEqual([409, 'conflict']);
      expect(hole.json.error).toMatchObject({ param: 'offset', acked_offset: 150 });
      expect((await send(0, bytes.length)).json).toMatchObject({ acked_offset: bytes.length });
      expect((await node.call(at(offer, 'complete'))).json).toEqual({ outcome: 'accepted' });
      expect(await (await reply).text()).toBe(whole);
    }));

  test('reaches the client while its call is still open', () =>
    withNode('live', async (node) => {
      const reply = chat('live', { stream: true });
      const offer = await node.next('offer');
      const { body, push, end } = piecewise();
      const output = node.call(at(offer, 'output'), { body });
      push(event('one'));
      const reader = (await reply).body!.getReader();
      expect(Buffer.from((await reader.read()).value!).toString()).toBe(event('one'));
      push(DONE);
      end();
      await output;
      await node.call(at(offer, 'complete'));
      expect(Buffer.from((await reader.read()).value!).toString()).toBe(DONE);
    }));

  test('of a client that reads slowly waits, and nothing of it is lost', () =>
    withNode('slow', async (node) => {
      const reply = await startedStream(node, 'slow');
      const piece = event('x'.repeat(64 * 1024));
      const whole = piece.repeat(256) + DONE;
      let taken = false;
      const output = node.call(at(reply.offer, 'output'), { body: Buffer.from(whole) }).then((called) => {
        taken = true;
        return called;
      });
      const reader = (await reply.response).body!.getReader();
      const first = (await reader.read()).value!;
      // Sixteen megabytes are more than all windows and sockets on the way hold.
      await until(
        'beats have passed',
        async () => (await node.call('heartbeat', { body: {} })).status === 200,
      );
      expect(taken).toBe(false);
      const parts = [Buffer.from(first)];
      const rest = (async () => {
        for (let next = await reader.read(); !next.done; next = await reader.read())
          parts.push(Buffer.from(next.value));
      })();
      expect((await output).json).toMatchObject({ acked_offset: Buffer.byteLength(whole) });
      await node.call(at(reply.offer, 'complete'));
      await rest;
      expect(Buffer.concat(parts).toString() === whole).toBe(true);
    }));

  test('is the whole of a long answer in one call', () =>
    withNode('long', async (node) => {
      const reply = chat('long');
      const offer = await node.next('offer');
      const whole = chatAnswer('y'.repeat(3_000_000));
      await node.call(at(offer, 'output'), { body: whole });
      await node.call(at(offer, 'complete'));
      expect((await (await reply).text()) === whole).toBe(true);
    }));

  test('with the head of the model server before it: its refusal is the client’s, its failure is not', () =>
    withNode('heads', async (node) => {
      const refused = chat('heads');
      const first = await node.next('offer');
      const head = 'HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nServer: secret\r\n\r\n';
      await node.call(at(first, 'output'), {
        query: { head: 'inline' },
        body: `${head}{"error":{"message":"too long"}}`,
      });
      await node.call(at(first, 'complete'));
      const reply = await refused;
      expect([reply.status, await reply.text()]).toEqual([400, '{"error":{"message":"too long"}}']);
      expect(reply.headers.get('server')).toBe(null);

      const retried = chat('heads');
      const second = await node.next('offer');
      const failed = await node.call(at(second, 'output'), {
        query: { head: 'inline' },
        body: 'HTTP/1.1 503 Busy\r\nRetry-After: 0\r\n\r\nprivate words',
      });
      expect([failed.status, failed.json.error.code]).toEqual([409, 'conflict']);
      expect(failed.json.error.message).toContain('The backend answered 503');
      const third = await node.next('offer');
      expect(third).toMatchObject({ job: second.job, attempt: 2 });
      await node.call(at(third, 'output'), {
        query: { head: 'inline' },
        body: `HTTP/2 200\n\n${chatAnswer('Now.')}`,
      });
      await node.call(at(third, 'complete'));
      expect(await (await retried).text()).toBe(chatAnswer('Now.'));
    }));

  test('that is no JSON is no success, whatever the node says', () =>
    withNode('unsound', async (node) => {
      const reply = chat('unsound', { stream: true });
      const offer = await node.next('offer');
      await node.call(at(offer, 'output'), { body: 'data: {oops\n\ndata: [DONE]\n\n' });
      await node.call(at(offer, 'complete'));
      const text = await (await reply).text();
      expect(text).toContain('"backend_error"');
      expect(text).not.toContain('data: [DONE]');
    }));

  test('that is cut is no success, whatever the node says', () =>
    withNode('cut', async (node) => {
      const reply = chat('cut', { stream: true });
      const offer = await node.next('offer');
      await node.call(at(offer, 'output'), { body: event('half') });
      await node.call(at(offer, 'complete'));
      const text = await (await reply).text();
      expect(text).toContain('"backend_error"');
      expect(text).not.toContain('data: [DONE]');
    }));
});

describe('what is ill-formed or too large', () => {
  const routes = Object.entries(ROUTES as Record<string, Route>).flatMap(([name, route]) =>
    route.needs === 'node' && name !== 'link' ? [{ name, ...route }] : [],
  );
  const path = (route: Route) =>
    route.path.replace('/node/v1/', '').replace(':id', 'job_1').replace(':attempt', '1');

  test('gets the one error shape', () =>
    withNode('ill', async (node) => {
      for (const route of routes.filter(({ body }) => body !== undefined)) {
        for (const body of ['{"a":', '[]', '1']) {
          const reply = await node.call(path(route), {
            body,
            headers: { 'content-type': 'application/json' },
          });
          expect([route.name, reply.status, reply.json.error.code]).toEqual([
            route.name,
            400,
            'invalid_request',
          ]);
        }
        const large = await node.call(path(route), { body: { reason: 'x'.repeat(300_000) } });
        expect([route.name, large.json.error.code]).toEqual([route.name, 'payload_too_large']);
      }
      for (const route of routes.filter(({ params }) => params !== undefined)) {
        const { method } = route;
        const unknown = await node.call(path(route), { method });
        // A result, a rejection or a release of what is over is no error: each ends the attempt.
        const ends = ['nodeComplete', 'nodeFail', 'nodeReject', 'nodeReleased'].includes(route.name);
        expect([route.name, unknown.status < 300]).toEqual([route.name, ends]);
        const odd = await node.call(path(route).replace('attempts/1', 'attempts/x'), { method });
        expect([odd.status, odd.json.error.param]).toEqual([400, 'attempt']);
      }
      for (const [query, param] of [
        [{ wait_ms: 1e9 }, 'wait_ms'],
        [{ ack: -1 }, 'ack'],
        [{ ack: 5 }, 'ack'],
        [{ session: '' }, 'session'],
      ] as const) {
        const reply = await node.call('lease', { query });
        expect([reply.status, reply.json.error.param]).toEqual([400, param]);
      }
      const slots = await node.call('register', { body: { boot_id: 'b', models: [], slots: 65 } });
      expect([slots.status, slots.json.error.param]).toEqual([400, 'slots']);
    }));

  test('is a warning where it is only a part: liveness is never refused for it', () =>
    withNode('warned', async (node) => {
      const { warnings } = await node.register({ boot_id: 'boot-warned-1', models: ['warned', { id: 7 }] });
      expect(warnings).toHaveLength(1);
      const beat = await node.call('heartbeat', {
        body: { health: 'splendid', in_flight: -1, models: 'all', odd: 1 },
      });
      expect(beat.status).toBe(200);
    }));

  test('output without the head that was promised is refused, and the attempt lives on', () =>
    withNode('headless', async (node) => {
      const reply = chat('headless');
      const offer = await node.next('offer');
      const refused = await node.call(at(offer, 'output'), {
        query: { head: 'inline' },
        body: chatAnswer('No head.'),
      });
      expect([refused.status, refused.json.error.param]).toEqual([400, 'head']);
      await node.call(at(offer, 'output'), { body: chatAnswer('A body.') });
      await node.call(at(offer, 'complete'));
      expect(await (await reply).text()).toBe(chatAnswer('A body.'));
    }));
});

async function startedStream(node: RawHttpNode, model: string) {
  const response = chat(model, { stream: true, stream_options: { include_usage: false } });
  const offer = await node.next('offer');
  return { response, offer };
}

/** A request body that is sent as the test pushes it. */
function piecewise() {
  let controller!: ReadableStreamDefaultController<Uint8Array>;
  const body = new ReadableStream<Uint8Array>({ start: (own) => void (controller = own) });
  return {
    body,
    push: (text: string) => controller.enqueue(Buffer.from(text)),
    end: () => controller.close(),
  };
}
