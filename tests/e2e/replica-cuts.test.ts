import type { ServerResponse } from 'node:http';
import { setTimeout as pause } from 'node:timers/promises';
import type { JobView, NodeView } from '@flotilla/protocol';
import { afterEach, describe, expect, test } from 'vitest';
import { NATS_URL } from '../support/nats.ts';
import { DONE, SSE, type ScriptedBackend, chatAnswer, chatChunk } from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';
import { type Plane, type World, openWorld } from '../support/world.ts';

/** Two replicas, and what is cut off from them without their being at fault: a node, their store. */
const HELLO = { messages: [{ role: 'user', content: 'Hello' }] };

describe.skipIf(NATS_URL === undefined)('two replicas (they need PostgreSQL and NATS)', () => {
  let world: World | undefined;
  let first: Plane;
  let second: Plane;
  afterEach(async () => {
    await world?.close();
    world = undefined;
  });

  async function open(heartbeat_ms: number): Promise<World> {
    world = await openWorld({ heartbeat_ms, nats_url: NATS_URL!, cuttable_store: true });
    first = world.plane;
    second = await world.replica();
    return world;
  }
  const submit = (plane: Plane, model = 'scripted') =>
    plane.send<{ id: string }>('POST', '/api/v1/jobs', { kind: 'inference', model, request: HELLO });
  const stateOf = async (plane: Plane, id: string) => (await plane.get<JobView>(`/api/v1/jobs/${id}`)).state;
  const kindOf = (request: { body: Buffer }) =>
    (JSON.parse(request.body.toString()) as { user?: string }).user ?? 'detached';

  test('the work of a node that falls silent runs elsewhere within 3 H + 1 s, and detached work never on both', async () => {
    const H_MS = 2000;
    const own = await open(H_MS);
    const lost = await own.backend(() => undefined);
    const whole = await own.backend((_request, response) => {
      response.setHeader('content-type', 'application/json');
      response.end(chatAnswer('elsewhere'));
    });
    const way = await own.proxy(second.port);
    const silent = await own.node({
      name: 'silent',
      control_url: way.url,
      backends: [{ url: lost.url, slots: 8 }],
    });
    const attached = first.chat({ user: 'attached' });
    // Whatever fails before it is awaited is the failure to be told.
    attached.catch(() => undefined);
    const detached = await Promise.all([submit(first), submit(second)]);
    await until('its backend has all of it', () => lost.requests.length === 3);
    for (const { id } of detached)
      await until('it runs', async () => (await stateOf(first, id)) === 'running');
    await own.node({ name: 'well', control_url: first.url, backends: [{ url: whole.url, slots: 8 }] });

    const cut_ms = performance.now();
    way.blackhole();
    const answer = await attached;
    expect([answer.status, await answer.text()]).toEqual([200, chatAnswer('elsewhere')]);
    for (const { id } of detached)
      await until('it has succeeded', async () => (await stateOf(second, id)) === 'succeeded');
    const begun = whole.requests.map(({ began_ms }) => began_ms - cut_ms);
    process.stdout.write(`begun elsewhere after ${begun.map(Math.round).join(', ')} ms (H ${H_MS} ms)\n`);
    expect(Math.max(...begun)).toBeLessThan(3 * H_MS + 1000);
    expect(whole.requests.map(kindOf).sort()).toEqual(['attached', 'detached', 'detached']);

    const { began_ms: taken_ms } = whole.requests.find((request) => kindOf(request) === 'detached')!;
    for (const request of lost.requests) {
      if (kindOf(request) === 'detached') expect(request.aborted_ms).toBeLessThan(taken_ms);
    }
    way.restore();
    const again = async () => (await second.get<NodeView>(`/api/v1/nodes/${silent.id}`)).state === 'online';
    await until('it is back', again);
    expect([lost.requests.length, whole.requests.length]).toEqual([3, 3]);
  });

  test('PostgreSQL away for 10 s: new work is refused, streams run on, nothing moves, service is back within 2 s', async () => {
    // The worst of all: two beats in a row find the store away, and a third comes too late for the lease.
    const H_MS = 4500;
    const own = await open(H_MS);
    const store = own.store_link!;
    const held: ServerResponse[] = [];
    const slow: ScriptedBackend = await own.backend((_request, response) => void held.push(response));
    const quick = await own.backend(
      (_request, response) => {
        response.setHeader('content-type', 'application/json');
        response.end(chatAnswer('well'));
      },
      ['quick'],
    );
    await own.node({ name: 'other', control_url: first.url, backends: [{ url: quick.url, slots: 8 }] });
    const home = await own.node({
      name: 'home',
      control_url: second.url,
      backends: [{ url: slow.url, slots: 8 }],
    });
    const streams = [await startStream(first), await startStream(second)];
    const { id } = await submit(first);
    await until('its backend has it', () => held.length === 3);
    await until('it runs', async () => (await stateOf(second, id)) === 'running');

    const view = async (plane: Plane) => plane.get<NodeView>(`/api/v1/nodes/${home.id}`);
    const { last_seen_at } = await view(second);
    await until('it has just beaten', async () => (await view(second)).last_seen_at !== last_seen_at);

    store.cut();
    const cut_ms = performance.now();
    // What comes in the first second after its failure waits for the store.
    await until('it has failed for a second', () => performance.now() - cut_ms > 2500);
    await Promise.all([first, second].map(refusesWork));
    const said: string[] = [];
    while (performance.now() - cut_ms < 10_000) {
      const chunk = chatChunk(String(said.length));
      said.push(chunk);
      for (const response of held.slice(0, 2)) response.write(chunk);
      for (const { state } of streams)
        await until('the stream runs on', () => state.text.endsWith(said.join('')), 2000);
      for (const plane of [first, second]) expect((await plane.chat({})).status).toBe(503);
      const views = await Promise.all([first, second].map(view));
      expect(views.map(({ state }) => state)).toEqual(['online', 'online']);
      await pause(250);
    }

    store.restore();
    expect(performance.now() - cut_ms).toBeLessThan(11_500);
    const back_ms = performance.now();
    const accepted = await Promise.all(
      [first, second].map((plane) =>
        until('it takes work', () => submit(plane, 'quick').catch(() => undefined)),
      ),
    );
    for (const fresh of accepted)
      await until('it has succeeded', async () => (await stateOf(first, fresh.id)) === 'succeeded');
    const took_ms = performance.now() - back_ms;
    process.stdout.write(`work is done ${Math.round(took_ms)} ms after the store is back\n`);
    expect(took_ms).toBeLessThan(2000);
    await until('the lease would be over', () => performance.now() - cut_ms > 3 * H_MS);
    for (const response of held.slice(0, 2)) response.end(DONE);
    held[2]!.setHeader('content-type', 'application/json');
    held[2]!.end(chatAnswer('well'));
    for (const { state, over } of streams) {
      await over;
      expect(state.text).toBe(chatChunk('first') + said.join('') + DONE);
    }
    await until('it has succeeded', async () => (await stateOf(first, id)) === 'succeeded');
    expect(slow.requests).toHaveLength(3);
    expect(slow.requests.filter(({ aborted_ms }) => aborted_ms !== null)).toEqual([]);
    expect((await first.get<JobView>(`/api/v1/jobs/${id}`)).attempts).toHaveLength(1);
    for (const plane of [first, second]) expect(plane.output()).not.toMatch(/was cleared away|"offline"/);

    /** A stream under way, and what its client has of it. */
    async function startStream(plane: Plane) {
      const state = { text: '' };
      const before = held.length;
      const reply = plane.chat({ stream: true });
      await until('the backend has it', () => held.length > before);
      held[before]!.writeHead(200, SSE);
      held[before]!.write(chatChunk('first'));
      const body = (await reply).body!.pipeThrough(new TextDecoderStream());
      const over = (async () => {
        for await (const piece of body) state.text += piece;
      })();
      await until('it has the first piece', () => state.text.includes('first'));
      return { state, over };
    }

    async function refusesWork(plane: Plane): Promise<void> {
      const reply = await fetch(`${plane.url}/api/v1/jobs`, {
        method: 'POST',
        headers: { authorization: `Bearer ${plane.admin_key}`, 'content-type': 'application/json' },
        body: JSON.stringify({ kind: 'inference', model: 'scripted', request: HELLO }),
      });
      expect(reply.status).toBe(503);
      expect(Number(reply.headers.get('retry-after'))).toBeGreaterThan(0);
    }
  }, 120_000);
});
