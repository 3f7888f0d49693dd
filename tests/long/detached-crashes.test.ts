import type { ServerResponse } from 'node:http';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import type { JobBatchVerdicts, JobView } from '@flotilla/protocol';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openStopped } from '../../packages/control/src/store/backup/place.ts';
import { type ScriptedBackend, type SeenRequest, chatAnswer } from '../support/scripted-backend.ts';
import { quiet } from '../support/store.ts';
import { until } from '../support/until.ts';
import { type TestNode, type World, openWorld } from '../support/world.ts';

/**
 * Thousands of detached jobs, submitted in batches, while the control plane and the nodes are killed at random
 * (kill -9) and started again. Each ends, with one result and one usage row, and none is worked on twice at a time.
 * `npm run test:long`. FLOTILLA_TEST_SEED repeats the choices of a run; when they fall is the machine's.
 */
const LONG = process.env['FLOTILLA_TEST_LONG'] === '1';
const JOBS = Number(process.env['FLOTILLA_TEST_JOBS'] ?? 10_000);
const SEED = Number(process.env['FLOTILLA_TEST_SEED'] ?? Math.floor(Math.random() * 2 ** 31));
const BATCH = 500;
const SLOTS = 16;
/** Leases of nine seconds: what runs outlives a control plane that is started again at once. */
const H_MS = 3000;
/**
 * Then all are left alone: what a killed node had, and nobody can say anything of, is given away only by a control plane
 * that has lived for the time of a lease.
 */
const KILL_FOR_MS = 60_000;
const WITHIN_MS = 10 * 60_000;
const HEAD = { 'content-type': 'application/json' };

let world: World;
const random = generator(SEED);
const backends: ScriptedBackend[] = [];
const nodes: TestNode[] = [];

beforeAll(async () => {
  if (!LONG) return;
  world = await openWorld({ heartbeat_ms: H_MS });
  for (const name of ['north', 'south']) {
    const backend = await world.backend(answer);
    backends.push(backend);
    nodes.push(await world.node({ name, backends: [{ url: backend.url, slots: SLOTS }] }));
  }
}, 60_000);
afterAll(() => world?.close());

test.runIf(LONG)(
  `${JOBS} detached jobs end once each while processes are killed at random`,
  async () => {
    const began_ms = performance.now();
    const ids = new Map<number, string>();
    let over = false;
    const killing = kill(() => over);
    for (let from = 0; from < JOBS; from += BATCH) {
      const numbers = Array.from({ length: Math.min(BATCH, JOBS - from) }, (_, place) => from + place);
      await submit(numbers, ids);
    }
    const submitted_ms = performance.now();
    await until('every job has ended', async () => !(await someAreOpen()), WITHIN_MS);
    over = true;
    const kills = await killing;
    const ended_ms = performance.now();
    // What nodes still hold of attempts that others have ended is told, and gone, before they are asked.
    await until('nothing runs any more', () => backends.every(({ in_flight }) => in_flight === 0));
    for (const node of nodes) await node.program().stop();
    await world.plane.program().stop();

    const seconds = (from_ms: number, to_ms: number) => ((to_ms - from_ms) / 1000).toFixed(1);
    const asked = backends.flatMap(({ requests }) => requests).length;
    process.stdout.write(
      `seed ${SEED}: ${JOBS} jobs on ${world.database_url === undefined ? 'the embedded store' : 'PostgreSQL'}, ` +
        `${kills.plane} kills of the control plane, ${kills.node} of nodes; submitted in ` +
        `${seconds(began_ms, submitted_ms)} s, ended after ${seconds(began_ms, ended_ms)} s; backends asked ${asked} times\n`,
    );
    expect(new Set(ids.values()).size).toBe(JOBS);
    expect(await wrongInStore(ids)).toEqual([]);
    expect(overlaps()).toEqual([]);
  },
  WITHIN_MS + 60_000,
);

/** The same again until it is answered: a control plane that is killed has accepted some, all or none of them. */
async function submit(numbers: number[], ids: Map<number, string>): Promise<void> {
  const jobs = numbers.map((number) => ({
    model: 'scripted',
    request: { messages: [{ role: 'user', content: String(number) }] },
    idempotency_key: `job-${number}`,
  }));
  const verdicts = await until(
    `jobs from ${numbers[0]} on are accepted`,
    async () => {
      const reply = await world.plane
        .send<JobBatchVerdicts>('POST', '/api/v1/jobs/batch', { jobs })
        .catch(() => undefined);
      return reply?.data.every((verdict) => 'id' in verdict) === true && reply.data;
    },
    60_000,
  );
  verdicts.forEach((verdict, place) => ids.set(numbers[place]!, (verdict as { id: string }).id));
}

async function someAreOpen(): Promise<boolean> {
  await pause(200);
  for (const state of ['queued', 'leased', 'running']) {
    const page = await world.plane
      .get<{ data: JobView[] }>(`/api/v1/jobs?state=${state}&limit=1`)
      .catch(() => undefined);
    if (page === undefined || page.data.length > 0) return true;
  }
  return false;
}

/** One process after the other, each down for a moment of its own. */
async function kill(over: () => boolean): Promise<{ plane: number; node: number }> {
  const kills = { plane: 0, node: 0 };
  const until_ms = performance.now() + KILL_FOR_MS;
  for (;;) {
    await pause(2000 + 3000 * random());
    if (over() || performance.now() > until_ms) return kills;
    const victim = random() < 0.4 ? world.plane : nodes[Math.floor(nodes.length * random())]!;
    victim.program().signal('SIGKILL');
    kills[victim === world.plane ? 'plane' : 'node']++;
    await pause(2000 * random() ** 2);
    await victim.restart();
  }
}

/** Tells the job's number again, after a while that differs: most are short, some outlive the process that gave them out. */
async function answer({ body }: SeenRequest, response: ServerResponse): Promise<void> {
  await pause(random() < 0.01 ? 2000 + 4000 * random() : 5 + 45 * random());
  response.writeHead(200, HEAD).end(chatAnswer(`Number ${numberOf(body)}.`));
}

function numberOf(body: Buffer): string {
  return (JSON.parse(body.toString()) as { messages: { content: string }[] }).messages[0]!.content;
}

/** Of the jobs whose rows are not what they should be, some. */
async function wrongInStore(ids: Map<number, string>): Promise<unknown[]> {
  const place =
    world.database_url === undefined
      ? { data_dir: join(world.dir, 'plane') }
      : { database_url: world.database_url };
  const engine = await openStopped(place, quiet);
  try {
    const rows = await engine.query<{ id: string; result: string | null } & Record<string, unknown>>(
      `select j.id, j.state, j.error_code, b.result,
         (select count(*) from attempts a where a.job = j.id and a.outcome = 'succeeded') as succeeded,
         (select count(*) from usage u where u.job = j.id and u.outcome = 'succeeded') as used,
         (select count(*) from usage u where u.job = j.id) as usages,
         (select jsonb_agg(jsonb_build_array(a.attempt, a.outcome) order by a.attempt) from attempts a where a.job = j.id) as attempts
       from jobs j join job_bodies b on b.job = j.id`,
    );
    const numbers = new Map([...ids].map(([number, id]) => [id, number]));
    const wrong = rows.filter(
      ({ id, state, succeeded, used, usages, result }) =>
        state !== 'succeeded' ||
        succeeded !== 1 ||
        used !== 1 ||
        usages !== 1 ||
        result !== chatAnswer(`Number ${numbers.get(id)}.`),
    );
    return rows.length === JOBS ? wrong.slice(0, 5) : [{ rows: rows.length }];
  } finally {
    await engine.close();
  }
}

/** Jobs that a backend was asked to do while it, or another, was still at it. */
function overlaps(): unknown[] {
  const asked = new Map<string, SeenRequest[]>();
  for (const request of backends.flatMap(({ requests }) => requests)) {
    const number = numberOf(request.body);
    asked.set(number, [...(asked.get(number) ?? []), request]);
  }
  const found: unknown[] = [];
  for (const [number, requests] of asked) {
    requests.sort((a, b) => a.began_ms - b.began_ms);
    for (const [place, { began_ms }] of requests.entries()) {
      const before = requests[place - 1];
      if (before !== undefined && (before.ended_ms ?? Infinity) > began_ms)
        found.push({ number, began_ms, before_ended_ms: before.ended_ms });
    }
  }
  return found;
}

/** mulberry32: the same choices from the same seed. */
function generator(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
