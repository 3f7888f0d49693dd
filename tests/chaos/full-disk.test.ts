import { randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ErrorBody, JobAccepted } from '@flotilla/protocol';
import { afterEach, expect, test } from 'vitest';
import { openStopped } from '../../packages/control/src/store/backup/place.ts';
import { MAY_MOUNT, type SmallDisk, mountSmallDisk } from '../support/small-disk.ts';
import { quiet } from '../support/store.ts';
import { until } from '../support/until.ts';
import { type World, openWorld } from '../support/world.ts';
import { MODELS, requestOf, scriptedAnswers } from './answers.ts';
import { violationsOf } from './check.ts';
import { openHistory, readHistory } from './history.ts';
import { storedJobs } from './stored.ts';

/** A disk that fills up under the embedded store, while jobs are submitted and run, and has room again later. */
let world: World;
let disk: SmallDisk;
let dir: string;
afterEach(async () => {
  await world.close();
  await disk.unmount();
  await rm(dir, { recursive: true });
});

const CLIENTS = 4;
const SLOTS = 4;
const WITHIN_MS = 120_000;

test.runIf(MAY_MOUNT).each([
  { full: 'a disk that is full', leave_bytes: 0 },
  // The log of the store goes on in the next file, of 16 MB: its whole engine gives up where that cannot be made.
  { full: 'a disk without room for the store’s log', leave_bytes: 12_000_000 },
])(
  '$full: what was acknowledged ends, the rest was refused, and all is served again when there is room',
  async ({ leave_bytes }) => {
    dir = await mkdtemp(join(tmpdir(), 'flotilla-full-disk-'));
    const data_dir = join(dir, 'store');
    await mkdir(data_dir);
    disk = await mountSmallDisk(data_dir, 'size=100m');
    world = await openWorld({ heartbeat_ms: 1000, data_dir });
    const history = openHistory(join(dir, 'history.jsonl'));
    const answers = scriptedAnswers(history, { random: () => 0, answer_ms: () => 50 });
    const backend = await world.backend(answers('box'), [MODELS.job]);
    await world.node({ name: 'box', backends: [{ url: backend.url, slots: SLOTS }] });

    const paddings = new Map<number, string>();
    const refused: string[] = [];
    let [number, accepted, over] = [0, 0, false];
    const client = async () => {
      while (!over) {
        const own = number++;
        // Until it is known: an answer that was lost may have been an acknowledgement.
        paddings.set(own, randomBytes(60_000).toString('hex'));
        for (let taken = false; !taken; ) taken = await submit(own);
        paddings.delete(own);
      }
    };
    const submit = async (own: number): Promise<boolean> => {
      history.add({ type: 'submitted', to: 'plane', from: own, count: 1 });
      const reply = await fetch(`${world.plane.url}/api/v1/jobs`, {
        method: 'POST',
        headers: {
          authorization: `Bearer ${world.plane.admin_key}`,
          'content-type': 'application/json',
          'idempotency-key': `job-${own}`,
        },
        body: JSON.stringify({
          model: MODELS.job,
          request: { ...requestOf('job', own), padding: paddings.get(own) },
        }),
      });
      const body = (await reply.json()) as JobAccepted & ErrorBody;
      if (reply.ok) {
        history.add({ type: 'acknowledged', by: 'plane', jobs: [[own, body.id]] });
        accepted++;
      } else refused.push(`${reply.status} ${body.error.code}`);
      return reply.ok;
    };
    const clients = Array.from({ length: CLIENTS }, client);
    await until('some are accepted', () => accepted > 20);
    // How far the log has come decides whether it or a table meets the end of the disk first: again, until it was the log.
    for (let times = 1; times === 1 || (leave_bytes > 0 && !gaveUp() && times <= 8); times++) {
      const before = refused.length;
      await disk.fill(leave_bytes);
      await until('no more are accepted', () => refused.length >= before + CLIENTS, WITHIN_MS);
      await disk.empty();
      const taken = accepted;
      await until('they are accepted again', () => accepted > taken + 20, WITHIN_MS);
    }
    over = true;
    await Promise.all(clients);
    expect(new Set(refused)).toEqual(new Set(['503 unavailable']));
    if (leave_bytes > 0) expect(gaveUp()).toBe(true);

    history.add({ type: 'calm' });
    await until('all have ended', async () => (await openJobs()) === 0, WITHIN_MS);
    history.add({ type: 'open', jobs: 0 });
    const [ready, nodes] = [await world.plane.get<{ status: string }>('/readyz'), await world.nodes()];
    history.add({
      type: 'view',
      by: 'plane',
      ready: ready.status,
      nodes: nodes.map(({ name, state }) => [name, state]),
    });
    await world.plane.program().stop();
    const engine = await openStopped({ data_dir }, quiet);
    for (const row of await storedJobs((text) => engine.query(text))) history.add({ type: 'stored', ...row });
    await engine.close();
    await history.flush();
    const events = await readHistory(history.path);
    expect(violationsOf(events, { slots: SLOTS, stuck_after_ms: WITHIN_MS })).toEqual([]);
  },
  2 * WITHIN_MS,
);

/** The store's whole engine, which was opened anew. */
function gaveUp(): boolean {
  return world.plane.output().includes('The embedded store is open again.');
}

async function openJobs(): Promise<number> {
  let open = 0;
  for (const state of ['queued', 'leased', 'running']) {
    const page = await world.plane.get<{ data: unknown[] }>(`/api/v1/jobs?state=${state}&limit=1`);
    open += page.data.length;
  }
  return open;
}
