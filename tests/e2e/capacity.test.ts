import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { chatAnswer, type ScriptedBackend } from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';
import { type TestNode, type World, openWorld } from '../support/world.ts';

let world: World;
let backend: ScriptedBackend;
let box: TestNode;
const H_MS = 500;
/** Ends the oldest request that the backend is working on. */
const holding: (() => void)[] = [];

beforeAll(async () => {
  world = await openWorld({ heartbeat_ms: H_MS });
  backend = await world.backend((_request, response) => {
    holding.push(() => {
      response.setHeader('content-type', 'application/json');
      response.end(chatAnswer('done'));
    });
  });
  box = await world.node({ name: 'box', backends: [{ url: backend.url, slots: 4 }] });
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
    expect(median(gaps)).toBeLessThan(20);
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

/** `npm run test:long` lets the job last a minute and more. */
const LASTS_BEATS = process.env['FLOTILLA_TEST_LONG'] === undefined ? 12 : 125;
const LASTS_AT_MOST_MS = 2 * LASTS_BEATS * H_MS;

describe('the beat', () => {
  it(`is not delayed by a job that lasts ${LASTS_BEATS} of them`, {
    timeout: LASTS_AT_MOST_MS + 10_000,
  }, async () => {
    const began_ms = performance.now();
    const reply = world.plane.chat({});
    const finish = await until('it runs', () => holding.shift());
    const seen_at = new Set<number>();
    /** By the acknowledgement that told it. */
    const round_trips = new Map<string, number>();
    const allBeats = async () => {
      const [[node], { link }] = await Promise.all([world.nodes(), ownStatus()]);
      expect(node).toMatchObject({ state: 'online', why: { missed_beats: 0 } });
      seen_at.add(Date.parse(node!.last_seen_at!));
      round_trips.set(link.last_ack_at, link.rtt_ms);
      const lasted = performance.now() - began_ms >= LASTS_BEATS * H_MS;
      return lasted && seen_at.size > LASTS_BEATS && round_trips.size > LASTS_BEATS;
    };
    await until('the beats have passed', allBeats, LASTS_AT_MOST_MS);
    finish();
    expect((await reply).status).toBe(200);
    // A beat comes every H and a random tenth of it; `missed_beats` would leave more than half of H unnoticed.
    const times = [...seen_at].sort((a, b) => a - b);
    const gaps = times.slice(1).map((at, index) => at - times[index]!);
    expect(median(gaps)).toBeLessThan(1.15 * H_MS);
    expect(Math.max(...gaps)).toBeLessThan(1.4 * H_MS);
    expect(Math.max(...round_trips.values())).toBeLessThan(H_MS / 4);
  });

  async function ownStatus(): Promise<{ link: { last_ack_at: string; rtt_ms: number } }> {
    const { url } = JSON.parse(await readFile(join(box.state_dir, 'status.json'), 'utf8')) as { url: string };
    return (await (await fetch(`${url}/status`)).json()) as { link: { last_ack_at: string; rtt_ms: number } };
  }
});

function median(values: number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;
}

async function openJobs(): Promise<number> {
  const { data } = await world.plane.get<{ data: { finished_at: string | null }[] }>(
    '/api/v1/jobs?limit=500',
  );
  return data.filter((job) => job.finished_at === null).length;
}
