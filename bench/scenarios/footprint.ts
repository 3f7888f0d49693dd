import { setTimeout as pause } from 'node:timers/promises';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { freshDatabase } from '../../tests/support/store.ts';
import { flotilla } from '../../tests/support/program.ts';
import { freePort } from '../../tests/support/free-port.ts';
import { processUse } from '../hardware.ts';
import { generate } from '../load.ts';
import { figure } from '../figure.ts';
import { goalOf, type Report, spread, type Table } from '../report.ts';
import { median } from '../histogram.ts';
import { interleave, middle } from '../rounds.ts';
import type { Scenario, Stage } from '../scenario.ts';
import { MODEL, type Target, TARGETS } from '../targets.ts';

/**
 * How fast a control plane is there, and what it keeps in memory, at rest and through a long load. The loads on both
 * stores run at once: what a process keeps does not depend on its neighbour, and one hour is enough for both.
 */
const STORES = ['PostgreSQL', 'PGlite'] as const;
type StoreName = (typeof STORES)[number];

interface Start {
  ready_ms: number;
  idle_mib: number;
}

interface Load {
  store: StoreName;
  minutes: number;
  requests: number;
  failed: number;
  /** At the end of each step, the control plane's process. */
  memory_mib: number[];
}

const IDLE_MS = 10_000;
const QUICK_IDLE_MS = 1000;
const LOOK_EVERY_MS = 5;
/** One connection less than makes a queue: the load is steady, not as large as it can be. */
const CONNECTIONS = 4;
const STEPS = 12;

export const footprint: Scenario = {
  name: 'footprint',
  about: 'cold start, memory at rest, and memory through a long load',
  async run(stage) {
    const stores = STORES.filter((store) => store === 'PGlite' || stage.place.database_url !== undefined);
    const places = await Promise.all(stores.map((store) => placeOf(store, stage)));
    try {
      stage.say('First starts, on stores that are made.');
      const first = new Map<StoreName, Start>();
      for (const place of places) first.set(place.store, await start(place, stage));
      stage.say('Starts, on stores that are there.');
      const again = await interleave(places, stage.rounds, (place) => start(place, stage));
      stage.say(`A load on each store for ${stage.load_ms / 60_000} minutes.`);
      const loads = await bothOf(stores.map((store) => loadOn(store, stage)));
      const starts = [...again].map(([{ store }, rounds]) => ({ store, first: first.get(store)!, rounds }));
      return reportOf(starts, loads, stage);
    } finally {
      for (const place of places) await place.drop();
    }
  },
};

interface Place {
  store: StoreName;
  env: Record<string, string>;
  drop(): Promise<void>;
}

async function placeOf(store: StoreName, { place }: Stage): Promise<Place> {
  const dir = await mkdtemp(join(tmpdir(), 'flotilla-bench-'));
  const database = store === 'PostgreSQL' ? await freshDatabase(place.database_url!) : null;
  return {
    store,
    env: {
      HOME: dir,
      FLOTILLA_DATA_DIR: dir,
      FLOTILLA_ADMIN_KEY: `flk_bench-${'x'.repeat(40)}`,
      ...(database !== null && { DATABASE_URL: database.url }),
    },
    async drop() {
      await database?.drop();
      await rm(dir, { recursive: true, force: true });
    },
  };
}

/** From the start of the process until it says that it can serve. */
async function start({ env }: Place, { quick }: Stage): Promise<Start> {
  const port = await freePort();
  const began_ms = performance.now();
  const program = flotilla(['control'], { ...env, FLOTILLA_PORT: String(port) }, []);
  try {
    while (!(await isReady(port))) {
      if (program.child.exitCode !== null) throw new Error(`It ended at once: ${program.output()}`);
      await pause(LOOK_EVERY_MS);
    }
    const ready_ms = performance.now() - began_ms;
    await pause(quick ? QUICK_IDLE_MS : IDLE_MS);
    return { ready_ms, idle_mib: processUse(program.pid)?.memory_mib ?? Number.NaN };
  } finally {
    await program.stop();
  }
}

function isReady(port: number): Promise<boolean> {
  return fetch(`http://127.0.0.1:${port}/readyz`).then(
    (reply) => reply.ok,
    () => false,
  );
}

/** One that fails is told when the other is over as well, whose processes would go on otherwise. */
async function bothOf<T>(loads: Promise<T>[]): Promise<T[]> {
  await Promise.allSettled(loads);
  return Promise.all(loads);
}

async function loadOn(store: StoreName, stage: Stage): Promise<Load> {
  const target: Target = await TARGETS[`Flotilla node, ${store}`]!.start(stage.place);
  const load: Load = { store, minutes: stage.load_ms / 60_000, requests: 0, failed: 0, memory_mib: [] };
  const [control] = target.pids;
  try {
    for (let step = 0; step < STEPS; step++) {
      const { requests, failed } = await generate({
        url: target.url,
        headers: target.headers,
        body: Buffer.from(
          JSON.stringify({
            model: MODEL,
            messages: [{ role: 'user', content: 'x'.repeat(2000) }],
            stream: true,
          }),
        ),
        connections: CONNECTIONS,
        for_ms: stage.load_ms / STEPS,
        expects: '[DONE]',
      });
      load.requests += requests;
      load.failed += failed;
      load.memory_mib.push(processUse(control!)?.memory_mib ?? Number.NaN);
    }
    return load;
  } finally {
    await target.stop();
  }
}

interface Starts {
  store: StoreName;
  first: Start;
  rounds: Start[];
}

function reportOf(starts: Starts[], loads: Load[], stage: Stage): Report {
  return {
    name: 'footprint',
    title: 'Start and memory',
    about:
      'A control plane (`flotilla control`, run from its source, which earlier starts have left compiled) from the start of its process until ' +
      '`/readyz` says that it serves, and its resident memory after it has been idle for ' +
      `${(stage.quick ? QUICK_IDLE_MS : IDLE_MS) / 1000} s (PGlite runs in the process itself, PostgreSQL does not). The load: ` +
      `${CONNECTIONS} connections with short streams, one after the other, through gateway and node, for ` +
      `${figure(stage.load_ms / 60_000)} minutes, on both stores at once; memory at the end of each twelfth of it. It has not grown if the ` +
      'last quarter lies no more than 5 % above the second.' +
      (starts.length === STORES.length ? '' : ' PostgreSQL was left out: give DATABASE_URL.'),
    goals: goalsOf(starts, loads, stage),
    tables: [startTable(starts), loadTable(loads)],
    plots: [
      {
        name: 'memory',
        title: 'Memory through the load',
        unit: 'MiB',
        groups: loads.map(({ store, minutes, memory_mib }) => ({
          label: store,
          bars: memory_mib.map((value, step) => ({
            name: `after ${figure(((step + 1) * minutes) / STEPS)} minutes`,
            value,
          })),
        })),
      },
    ],
    data: { starts, loads },
  };
}

function startTable(starts: Starts[]): Table {
  return {
    title: 'Start',
    columns: ['', 'ready', 'ready, the store made first', 'idle memory'],
    rows: starts.map(({ store, first, rounds }) => [
      store,
      spread(middle(rounds.map(({ ready_ms }) => ready_ms)), ' ms'),
      `${figure(first.ready_ms)} ms`,
      spread(middle(rounds.map(({ idle_mib }) => idle_mib)), ' MiB'),
    ]),
  };
}

function loadTable(loads: Load[]): Table {
  return {
    title: 'Memory through the load, MiB at the end of each twelfth',
    columns: ['', ...Array.from({ length: STEPS }, (_, step) => String(step + 1)), 'requests', 'failed'],
    rows: loads.map(({ store, memory_mib, requests, failed }) => [
      store,
      ...memory_mib.map((value) => figure(value)),
      figure(requests),
      String(failed),
    ]),
  };
}

/**
 * The last quarter to the second: in the first the heap has yet to find its size. Of each the median, for V8 gives memory back
 * now and then, and takes it again: a mean of one with such a moment would make growth of what comes after it.
 */
function growth({ memory_mib }: Load): number {
  const quarter = STEPS / 4;
  const usual = (from: number) => median(memory_mib.slice(from, from + quarter));
  return (usual(3 * quarter) / usual(quarter) - 1) * 100;
}

function goalsOf(starts: Starts[], loads: Load[], stage: Stage) {
  const missing = { missing: 'no PostgreSQL' };
  const own = starts.find(({ store }) => store === 'PostgreSQL');
  const of = (value: (start: Start) => number) =>
    own === undefined ? missing : middle(own.rounds.map(value));
  const hour = stage.load_ms >= 3_600_000;
  return [
    goalOf(
      'control plane on PostgreSQL: ready',
      { most: 1000 },
      'ms',
      of(({ ready_ms }) => ready_ms),
    ),
    goalOf(
      'control plane on PostgreSQL: idle memory',
      { most: 150 },
      'MiB',
      of(({ idle_mib }) => idle_mib),
    ),
    ...loads.map((load) => {
      const goal = goalOf(
        `${load.store}: growth of memory in an hour of load`,
        { most: 5 },
        '%',
        growth(load),
      );
      const measured = `${goal.measured} in ${figure(load.minutes)} minutes`;
      return { ...goal, measured, reached: hour ? goal.reached : null };
    }),
  ];
}
