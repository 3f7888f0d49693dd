import type { LimitsView } from '@flotilla/protocol';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { NATS_URL } from '../support/nats.ts';
import { type Proxy, startProxy } from '../support/proxy.ts';
import { type ScriptedBackend, chatAnswer } from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';
import { type Plane, type World, openWorld } from '../support/world.ts';

/** Limits of keys on two replicas on one PostgreSQL and one NATS, each with a node of its own. */
const HEARTBEAT_MS = 1000;
/** What each answer costs, by the backend's count. */
const COST = 8;

describe.skipIf(NATS_URL === undefined)('limits over two replicas (they need PostgreSQL and NATS)', () => {
  let world: World;
  let bus: Proxy;
  let backend: ScriptedBackend;
  let first: Plane;
  let second: Plane;
  let both: Plane[];

  beforeAll(async () => {
    const { hostname, port } = new URL(NATS_URL!);
    bus = await startProxy({ host: hostname, port: Number(port || 4222) });
    world = await openWorld({
      heartbeat_ms: HEARTBEAT_MS,
      nats_url: `nats://127.0.0.1:${bus.port}`,
      cuttable_store: true,
    });
    first = world.plane;
    second = await world.replica();
    both = [first, second];
    backend = await world.backend(answer);
    for (const [index, plane] of both.entries()) {
      const backends = [{ url: backend.url, slots: 16 }];
      await world.node({ name: `home-${index}`, control_url: plane.url, backends });
    }
  });
  afterAll(async () => {
    await world.close();
    await bus.close();
  });
  beforeEach(() => {
    backend.requests.length = 0;
    backend.answer = answer;
  });

  /** With its count of tokens, to which reservations fall at once. */
  function answer(_request: unknown, response: { end(text: string): void }): void {
    response.end(chatAnswer('Hello'));
  }
  /** Keeps what comes until it is told to answer. */
  function hold(): { waiting: (() => void)[]; let_go: () => void } {
    const waiting: (() => void)[] = [];
    backend.answer = (_request, response) => {
      waiting.push(() => void response.end(chatAnswer('Hello')));
    };
    return {
      waiting,
      let_go() {
        backend.answer = answer;
        for (const end of waiting.splice(0)) end();
      },
    };
  }
  /** A key that both know. */
  async function makeKey(limits: Record<string, unknown>): Promise<string> {
    const key = await world.key(limits);
    await until('the second knows it', () => limitsOn(second, key).catch(() => undefined));
    return key;
  }
  /** So many one after the other, at each of the planes in turn. */
  async function ask(count: number, planes: Plane[], key: string): Promise<number[]> {
    const statuses: number[] = [];
    for (let n = 0; n < count; n++) {
      const reply = await planes[n % planes.length]!.chat({ max_tokens: 5 }, { key });
      await reply.text();
      statuses.push(reply.status);
    }
    return statuses;
  }
  const served = (statuses: number[]) => statuses.filter((status) => status === 200).length;
  const limitsOn = (plane: Plane, key: string) => plane.get<LimitsView>('/api/v1/usage/limits', key);

  test('requests a minute: the same for traffic at one and at both, and never more', async () => {
    for (const planes of [[first], both]) {
      const key = await makeKey({ requests_per_minute: 30 });
      const began_ms = performance.now();
      const statuses = await ask(40, planes, key);
      const back = Math.ceil(((performance.now() - began_ms) * 30) / 60_000);
      expect(served(statuses)).toBeGreaterThanOrEqual(30);
      expect(served(statuses)).toBeLessThanOrEqual(30 + back);
      expect(statuses.slice(0, 30)).toEqual(Array.from({ length: 30 }, () => 200));
      // Every 2 s one comes back.
      const refused = await until('one is refused', async () => {
        const reply = await first.chat({}, { key });
        return reply.status === 429 ? reply : undefined;
      });
      expect(Number(refused.headers.get('retry-after'))).toBeGreaterThan(0);
      expect(refused.headers.get('x-ratelimit-remaining-requests')).toBe('0');
    }
  });

  test('requests a minute: many at once on both are as many as there may be', async () => {
    const key = await makeKey({ requests_per_minute: 40 });
    const began_ms = performance.now();
    const replies = await Promise.all(
      Array.from({ length: 80 }, (_, n) => both[n % 2]!.chat({ max_tokens: 5 }, { key })),
    );
    const back = Math.ceil(((performance.now() - began_ms) * 40) / 60_000);
    const count = served(replies.map(({ status }) => status));
    expect(count).toBeGreaterThanOrEqual(40);
    expect(count).toBeLessThanOrEqual(40 + back);
  });

  test('tokens a minute: what is reserved and what was used is known to both', async () => {
    const key = await makeKey({ tokens_per_minute: 600 });
    const replies = [
      await first.chat({ max_tokens: 500 }, { key }),
      await second.chat({ max_tokens: 500 }, { key }),
    ];
    // The first has cost 8 of what it reserved, and the rest is back.
    expect(replies.map(({ status }) => status)).toEqual([200, 200]);
    const { waiting, let_go } = hold();
    const under_way = first.chat({ max_tokens: 500 }, { key });
    await until('the backend has it', () => waiting.length === 1);
    const refused = await second.chat({ max_tokens: 500 }, { key });
    expect(refused.status).toBe(429);
    expect(Number(refused.headers.get('x-ratelimit-remaining-tokens'))).toBeLessThan(100);
    let_go();
    expect((await under_way).status).toBe(200);
    await until(
      'it is free again',
      async () => (await second.chat({ max_tokens: 500 }, { key })).status === 200,
    );
  });

  test('concurrency: as many as there may be on both together; one that ends makes room on the other', async () => {
    const key = await makeKey({ concurrency: 3 });
    backend.most_in_flight = 0;
    const { waiting, let_go } = hold();
    const replies = [first, second, first].map((plane) => plane.chat({}, { key }));
    await until('three are under way', () => waiting.length === 3);
    for (const plane of both) expect((await plane.chat({}, { key })).status).toBe(429);
    expect((await limitsOn(first, key)).concurrency).toEqual({ limit: 3, in_use: 3 });
    waiting.shift()!();
    expect((await Promise.race(replies)).status).toBe(200);
    const more: Promise<Response>[] = [];
    await until('the next one is', () => {
      if (more.length < 20) more.push(second.chat({}, { key }));
      return waiting.length === 3;
    });
    let_go();
    for (const reply of replies) expect((await reply).status).toBe(200);
    expect(served((await Promise.all(more)).map(({ status }) => status))).toBeGreaterThanOrEqual(1);
    expect(backend.most_in_flight).toBe(3);
  });

  test('concurrency of one: clients that take turns at both are never refused, with the bus and without', async () => {
    const key = await makeKey({ concurrency: 1 });
    expect(served(await ask(20, both, key))).toBe(20);
    bus.cut();
    try {
      for (const plane of both) {
        await until('it says that it is degraded', async () => {
          return (await plane.get<{ status: string }>('/readyz')).status === 'degraded';
        });
      }
      expect(served(await ask(6, both, key))).toBe(6);
      const { waiting, let_go } = hold();
      const one = first.chat({}, { key });
      await until('it is under way', () => waiting.length === 1);
      expect((await second.chat({}, { key })).status).toBe(429);
      let_go();
      expect((await one).status).toBe(200);
    } finally {
      bus.restore();
      for (const plane of both) {
        await until('it is ready', async () => {
          return (await plane.get<{ status: string }>('/readyz')).status === 'ready';
        });
      }
    }
  });

  test('a budget: all of it can be used at both, and no more; then both say that it is used up', async () => {
    const key = await makeKey({ token_budget: { tokens: 20 * COST, period: 'total' } });
    const statuses = await ask(30, both, key);
    expect(served(statuses)).toBe(20);
    // Until both have told what theirs have cost, the rest is held by requests that may still give some back.
    expect(statuses.filter((status) => ![200, 402, 429].includes(status))).toEqual([]);
    for (const plane of both) {
      await until('it says that all is used', async () => (await ask(1, [plane], key))[0] === 402);
      expect((await limitsOn(plane, key)).budget).toMatchObject({
        used: 20 * COST,
        reserved: 0,
        remaining: 0,
      });
    }
  });

  test('a budget: many at once are admitted only as far as what they reserve fits beside the others', async () => {
    const key = await makeKey({ token_budget: { tokens: 1000, period: 'day' } });
    const { waiting, let_go } = hold();
    const replies = Array.from({ length: 8 }, (_, n) => both[n % 2]!.chat({ max_tokens: 340 }, { key }));
    const statuses: number[] = [];
    for (const reply of replies) void reply.then(({ status }) => statuses.push(status));
    await until('the others are refused', () => statuses.length === 6);
    expect(statuses).toEqual([429, 429, 429, 429, 429, 429]);
    await until('two are under way', () => waiting.length === 2);
    let_go();
    await until('they end', () => statuses.length === 8);
    expect(statuses.slice(6)).toEqual([200, 200]);
  });

  test('a detached job reserves once, whoever accepts it, and costs what it has used', async () => {
    const key = await makeKey({
      token_budget: { tokens: 1000, period: 'day' },
      scopes: ['jobs', 'inference'],
    });
    const { waiting, let_go } = hold();
    await first.send(
      'POST',
      '/api/v1/jobs',
      { kind: 'inference', model: 'scripted', request: { messages: [], max_tokens: 500 } },
      key,
    );
    await until('the backend has it', () => waiting.length === 1);
    for (const plane of both) {
      const { budget } = await until('it is reserved', async () => {
        const view = await limitsOn(plane, key);
        return view.budget!.reserved > 500 ? view : undefined;
      });
      expect(budget!.reserved).toBeLessThan(600);
      expect(budget!.used).toBe(0);
    }
    expect((await second.chat({ max_tokens: 500 }, { key })).status).toBe(429);
    let_go();
    for (const plane of both) {
      await until('it is counted', async () => {
        const { budget } = await limitsOn(plane, key);
        return budget!.used === COST && budget!.reserved === 0;
      });
    }
  });

  test('a change of a limit counts on both', async () => {
    const { id, key } = await first.send<{ id: string; key: string }>('POST', '/api/v1/keys', {
      name: 'changed',
      requests_per_minute: 1000,
    });
    expect(served(await ask(10, both, key))).toBe(10);
    await first.send('PATCH', `/api/v1/keys/${id}`, { requests_per_minute: 2 });
    await until('the second knows', async () => {
      const { requests } = await limitsOn(second, key);
      return requests?.limit === 2;
    });
    expect(served(await ask(10, both, key))).toBe(2);
  });

  test('the store away: what is at hand is spent, what is not gets 503 with Retry-After; then all is as before', async () => {
    const keys = [await makeKey({ requests_per_minute: 100 }), await makeKey({ requests_per_minute: 100 })];
    expect(served(await ask(3, [first], keys[0]!))).toBe(3);
    world.store_link!.cut();
    const drawn = first.chat({}, { key: keys[1]! });
    expect((await drawn).status).toBe(503);
    expect(Number((await drawn).headers.get('retry-after'))).toBeGreaterThan(0);
    world.store_link!.restore();
    for (const plane of both) {
      for (const key of keys) {
        await until('it is served again', async () => (await plane.chat({}, { key })).status === 200, 5000);
      }
    }
  });

  test('kill -9 of one gives back what it held, once it is dead for the other', async () => {
    const limits = { concurrency: 2, token_budget: { tokens: 1000, period: 'day' } };
    const key = await makeKey(limits);
    const { waiting, let_go } = hold();
    const lost = [1, 2].map(() => second.chat({ max_tokens: 340 }, { key }).catch(() => undefined));
    await Promise.race([
      until('both are under way', () => waiting.length === 2),
      ...lost.map(async (reply) => expect((await reply)?.status, 'none is refused').toBe(200)),
    ]);
    expect((await first.chat({ max_tokens: 340 }, { key })).status).toBe(429);
    second.program().signal('SIGKILL');
    await Promise.all(lost);
    expect((await first.chat({ max_tokens: 340 }, { key })).status).toBe(429);
    await until('it is cleared away', () => first.output().includes('was cleared away'));
    let_go();
    await until(
      'there is room',
      async () => (await first.chat({ max_tokens: 340 }, { key })).status === 200,
      3000,
    );
    expect((await limitsOn(first, key)).budget).toMatchObject({ used: COST, reserved: 0 });
    expect((await limitsOn(first, key)).concurrency).toEqual({ limit: 2, in_use: 0 });
  });
});
