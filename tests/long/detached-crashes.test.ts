import type { ServerResponse } from 'node:http';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { numberedJobs, overlaps, tellNumber } from '../support/numbered-jobs.ts';
import type { ScriptedBackend, SeenRequest } from '../support/scripted-backend.ts';
import { seededRandom } from '../support/seeded-random.ts';
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

let world: World;
const random = seededRandom(SEED);
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
    const jobs = numberedJobs([world.plane]);
    let over = false;
    const killing = kill(() => over);
    for (let from = 0; from < JOBS; from += BATCH) {
      await jobs.submit(from, Math.min(BATCH, JOBS - from));
    }
    const submitted_ms = performance.now();
    await until('every job has ended', async () => !(await jobs.someAreOpen()), WITHIN_MS);
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
    expect(new Set(jobs.ids.values()).size).toBe(JOBS);
    const { database_url } = world;
    const place = database_url === undefined ? { data_dir: join(world.dir, 'plane') } : { database_url };
    expect(await jobs.wrongInStore(place)).toEqual([]);
    expect(overlaps(backends)).toEqual([]);
  },
  WITHIN_MS + 60_000,
);

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
async function answer(request: SeenRequest, response: ServerResponse): Promise<void> {
  await pause(random() < 0.01 ? 2000 + 4000 * random() : 5 + 45 * random());
  tellNumber(request, response);
}
