import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { chatAnswer, type ScriptedBackend } from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';
import { type World, openWorld } from '../support/world.ts';

let world: World;
let backend: ScriptedBackend;
/** Ends the oldest request that the backend is working on. */
const holding: (() => void)[] = [];

beforeAll(async () => {
  world = await openWorld();
  backend = await world.backend((_request, response) => {
    holding.push(() => {
      response.setHeader('content-type', 'application/json');
      response.end(chatAnswer('done'));
    });
  });
  await world.node({ name: 'box', backends: [{ url: backend.url, slots: 4 }] });
});
afterAll(() => world.close());

describe('a pool of 4 slots', () => {
  it('sees exactly 4 of 12 requests at a time, and the next one within 20 ms of a release (median)', async () => {
    const replies = Array.from({ length: 12 }, () => world.plane.chat({}));
    await until('the pool is full', () => holding.length === 4);
    const gaps: number[] = [];
    for (let done = 0; done < 12; done++) {
      const before = backend.requests.length;
      const released_ms = performance.now();
      holding.shift()!();
      if (done >= 8) continue;
      const next = await until('the next one starts', () => backend.requests[before]);
      gaps.push(next.began_ms - released_ms);
      expect(backend.in_flight).toBe(4);
    }
    for (const reply of await Promise.all(replies)) expect(reply.status).toBe(200);
    expect(backend.most_in_flight).toBe(4);
    gaps.sort((a, b) => a - b);
    expect(gaps[Math.floor(gaps.length / 2)]).toBeLessThan(20);
  });

  it('serves two keys in turns although one came with ten requests first', async () => {
    const [busy, quiet] = [await world.key(), await world.key()];
    backend.requests.length = 0;
    const burst = Array.from({ length: 14 }, (_, index) =>
      world.plane.chat({ user: `busy ${index}` }, { key: busy }),
    );
    await until('the burst waits', async () => (await openJobs()) === 14 && holding.length === 4);
    const late = [world.plane.chat({ user: 'quiet' }, { key: quiet })];
    await until('the late one waits', async () => (await openJobs()) === 15);
    for (let done = 0; done < 15; done++)
      await until('one runs', () => holding.shift()).then((finish) => finish());
    await Promise.all([...burst, ...late]);
    const order = backend.requests.map(({ body }) => (JSON.parse(body.toString()) as { user: string }).user);
    expect(order.indexOf('quiet')).toBeLessThan(8);
  });

  it('returns every slot, and says so in the roster', async () => {
    const [node] = await world.nodes();
    expect(node!.pools[0]).toMatchObject({ capacity: 4, capacity_from: 'config', reserved: 0 });
  });
});

describe('the beat', () => {
  it('is not delayed by a job that lasts twelve of them', async () => {
    const reply = world.plane.chat({});
    const finish = await until('it runs', () => holding.shift());
    let missed = 0;
    let beats = 0;
    let last_seen = '';
    await until('twelve beats have passed', async () => {
      const [node] = await world.nodes();
      missed = Math.max(missed, node!.why.missed_beats);
      expect(node!.state).toBe('online');
      if (node!.last_seen_at !== last_seen) beats++;
      last_seen = node!.last_seen_at!;
      return beats >= 13;
    });
    finish();
    expect((await reply).status).toBe(200);
    expect(missed).toBe(0);
  });
});

async function openJobs(): Promise<number> {
  const { data } = await world.plane.get<{ data: { finished_at: string | null }[] }>(
    '/api/v1/jobs?limit=500',
  );
  return data.filter((job) => job.finished_at === null).length;
}
