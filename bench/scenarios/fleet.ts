import { setTimeout as pause } from 'node:timers/promises';
import pg from 'pg';
import { until } from '../../tests/support/until.ts';
import type { World } from '../../tests/support/world.ts';
import { processUse } from '../hardware.ts';
import type { Spread } from '../histogram.ts';
import { enrolAll } from '../nodes/enrolled.ts';
import type { Settled } from '../nodes/swarm.ts';
import { order } from '../orders.ts';
import { type Decided, decide } from '../placement.ts';
import { figure } from '../figure.ts';
import { goalOf, type Report, SPREAD_COLUMNS, spreadCells, type Table } from '../report.ts';
import type { Scenario, Stage } from '../scenario.ts';
import { startServer } from '../script.ts';
import { openFlotilla } from '../targets.ts';

/** Ten thousand nodes on one replica: what they cost while nothing happens, and how they come back when all are lost at once. */
const NODES = 10_000;
const QUICK_NODES = 500;
const MODELS = 1000;
const HEARTBEAT_MS = 5000;
/** Statistics of PostgreSQL reach their views within so long. */
const STATISTICS_MS = 1500;

interface Steady {
  seconds: number;
  cpu_share: number;
  memory_mib: number;
  memory_kib_a_node: number;
  beats: number;
  round_trips: Spread;
  /** Rows inserted, updated or deleted, by table. */
  rows: Record<string, number>;
  commits: number;
}

interface Storm {
  what: string;
  /** Since the links were lost, and since somebody listened again. */
  took_ms: number;
  since_ready_ms: number;
  each: Spread;
  fenced: number;
  offline: number;
  refusals: Record<string, number>;
}

export const fleet: Scenario = {
  name: 'fleet',
  about: `${NODES.toLocaleString('en')} nodes on one replica: what they cost, and a storm of all of them; placement`,
  async run(stage) {
    stage.say('Placements.');
    const decided = decide(stage.quick ? 5000 : 100_000);
    if (stage.place.database_url === undefined) return reportOf(null, decided, stage);
    const nodes = stage.quick ? QUICK_NODES : NODES;
    const world = await openFlotilla(stage.place, 'postgres');
    const database = new pg.Client({ connectionString: world.database_url });
    await database.connect();
    const swarm = await startServer('nodes/swarm.ts', {
      CONTROL_URL: world.plane.url,
      HEARTBEAT_MS: String(HEARTBEAT_MS),
    });
    try {
      const alone_mib = processUse(world.plane.program().pid)?.memory_mib ?? Number.NaN;
      const last = await enrolAll(database, nodes);
      await until('the nodes are known', () =>
        world.plane.get(`/api/v1/nodes/${last}`).then(
          () => true,
          () => false,
        ),
      );
      stage.say(`${nodes} nodes come for the first time.`);
      const joined = await watched(database, () =>
        order<Settled>(swarm.port, `join?nodes=${nodes}&models=${MODELS}`),
      );
      const storms = [stormOf('all join', joined, joined.settled.each.most)];
      stage.say('They beat.');
      const steady = await beatOn(world, database, swarm.port, {
        nodes,
        alone_mib,
        for_ms: stage.for_ms * 10,
      });
      for (let round = 0; round < stage.rounds; round++) {
        stage.say('All links are dropped.');
        const dropped = await watched(database, () => order<Settled>(swarm.port, 'drop'));
        storms.push(stormOf('all links dropped', dropped, dropped.settled.each.most));
        await pause(HEARTBEAT_MS);
        stage.say('The control plane is killed and started again.');
        let ready_ms = 0;
        const killed = await watched(database, async () => {
          const lost = order<Settled>(swarm.port, 'lost');
          const began_ms = performance.now();
          world.plane.program().signal('SIGKILL');
          await world.plane.program().ended;
          await world.plane.restart();
          ready_ms = performance.now() - began_ms;
          return lost;
        });
        storms.push(stormOf('kill -9 and a new start', killed, killed.settled.each.most - ready_ms));
        await pause(HEARTBEAT_MS);
      }
      return reportOf({ nodes, steady, storms }, decided, stage);
    } catch (error) {
      stage.say(`The control plane said: ${world.plane.output().slice(-4000)}`);
      throw error;
    } finally {
      await swarm.stop();
      await database.end();
      await world.close();
    }
  },
};

/** Looks all the while whether anybody is taken for dead. */
async function watched(
  database: pg.Client,
  run: () => Promise<Settled>,
): Promise<{ settled: Settled; offline: number }> {
  let offline = 0;
  let over = false;
  const watching = (async () => {
    while (!over) {
      const { rows } = await database.query<{ n: string }>(
        `select count(*) as n from node_liveness where state = 'offline'`,
      );
      offline = Math.max(offline, Number(rows[0]!.n));
      await pause(250);
    }
  })();
  const settled = await run();
  over = true;
  await watching;
  return { settled, offline };
}

function stormOf(
  what: string,
  { settled, offline }: { settled: Settled; offline: number },
  since_ready_ms: number,
): Storm {
  const { each, fenced, refusals } = settled;
  return { what, took_ms: each.most, since_ready_ms, each, fenced, offline, refusals };
}

async function beatOn(
  { plane }: World,
  database: pg.Client,
  port: number,
  { nodes, alone_mib, for_ms }: { nodes: number; alone_mib: number; for_ms: number },
): Promise<Steady> {
  // What the registrations left behind is written by then.
  await pause(2 * HEARTBEAT_MS);
  const { pid } = plane.program();
  await order(port, 'beats');
  const [rows, commits, beats] = [
    await rowsOf(database),
    await commitsOf(database),
    await beatsOf(plane.url),
  ];
  const before = processUse(pid);
  const began_ms = performance.now();
  await pause(for_ms);
  const after = processUse(pid);
  const seconds = (performance.now() - began_ms) / 1000;
  const beats_after = await beatsOf(plane.url);
  const { round_trips } = await order<{ round_trips: Spread }>(port, 'beats');
  await pause(STATISTICS_MS);
  const rows_after = await rowsOf(database);
  const written = Object.entries(rows_after).map(([table, n]) => [table, n - (rows[table] ?? 0)] as const);
  const memory_mib = after?.memory_mib ?? Number.NaN;
  return {
    seconds,
    cpu_share: before === null || after === null ? Number.NaN : (after.cpu_s - before.cpu_s) / seconds,
    memory_mib,
    memory_kib_a_node: ((memory_mib - alone_mib) * 1024) / nodes,
    beats: beats_after - beats,
    round_trips,
    rows: Object.fromEntries(written.filter(([, n]) => n > 0)),
    commits: (await commitsOf(database)) - commits,
  };
}

async function rowsOf(database: pg.Client): Promise<Record<string, number>> {
  const { rows } = await database.query<{ relname: string; n: string }>(
    'select relname, n_tup_ins + n_tup_upd + n_tup_del as n from pg_stat_user_tables',
  );
  return Object.fromEntries(rows.map(({ relname, n }) => [relname, Number(n)]));
}

async function commitsOf(database: pg.Client): Promise<number> {
  const { rows } = await database.query<{ n: string }>(
    'select xact_commit as n from pg_stat_database where datname = current_database()',
  );
  return Number(rows[0]!.n);
}

async function beatsOf(url: string): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  return Number(/^flotilla_beats_total (\d+)/m.exec(text)?.[1]);
}

interface Found {
  nodes: number;
  steady: Steady;
  storms: Storm[];
}

/** The batched flush of when nodes were last heard of, and this replica's own sign of life. */
const EXPECTED = new Set(['node_liveness', 'replicas']);

function reportOf(found: Found | null, decided: Decided[], stage: Stage): Report {
  return {
    name: 'fleet',
    title: 'Many nodes on one replica',
    about:
      `A process of the bench holds ${(found?.nodes ?? NODES).toLocaleString('en')} real links, each beating as the daemon does (every ` +
      `${HEARTBEAT_MS / 1000} s and a little), to one control plane on PostgreSQL; nodes and credentials were put into the database, ` +
      `since enrolment is not what is measured. Rows are PostgreSQL’s own counts (pg_stat_user_tables) over the window; two ` +
      'tables are written whatever happens: node_liveness, where the time at which nodes were last heard of is flushed for all of ' +
      'them in one statement every five minutes, and replicas, one row a second. Processor time and memory are of the control plane’s ' +
      'process. In a storm all links are lost at once, and every node dials again by the daemon’s rule (first within a random ' +
      'second, then up to 1, 2, 4, 5 s). Fenced is who would have stopped its work by its own clock; offline is who was ever taken ' +
      'for dead. Placement is the pure rule, in the bench’s process. ' +
      (found === null
        ? 'The fleet was left out (no PostgreSQL: give DATABASE_URL).'
        : `${stage.rounds} storms of each kind.`),
    goals: goalsOf(found, decided),
    tables: [...(found === null ? [] : tablesOf(found)), placementTable(decided)],
    plots: [
      {
        name: 'placement',
        title: 'One placement among 10,000 nodes',
        unit: 'µs',
        groups: (['p50', 'p99'] as const).map((share) => ({
          label: share,
          bars: decided.map(({ what, took }) => ({ name: what, value: took[share] })),
        })),
      },
    ],
    data: { found, decided },
  };
}

function tablesOf({ nodes, steady, storms }: Found): Table[] {
  const a_beat = (n: number) => figure(n / steady.beats);
  return [
    {
      title: `${nodes} nodes at rest, for ${Math.round(steady.seconds)} s`,
      columns: ['', ''],
      rows: [
        ['share of a core', `${figure(steady.cpu_share * 100)} %`],
        ['resident memory', `${figure(steady.memory_mib)} MiB`],
        ['of it for each node', `${figure(steady.memory_kib_a_node)} KiB`],
        ['beats a second', figure(steady.beats / steady.seconds)],
        [
          'round trip of a beat, p50 / p99',
          `${figure(steady.round_trips.p50)} / ${figure(steady.round_trips.p99)} ms`,
        ],
        ['transactions a second', figure(steady.commits / steady.seconds)],
        ...Object.entries(steady.rows).map(([table, n]) => [
          `rows written in ${table}`,
          `${figure(n)} (${a_beat(n)} a beat)`,
        ]),
      ],
    },
    {
      title: 'Storms: from the loss of all links until a node is registered again',
      columns: ['', ...SPREAD_COLUMNS, 'all, since somebody listened', 'fenced', 'offline', 'dials refused'],
      rows: storms.map(({ what, each, since_ready_ms, fenced, offline, refusals }) => [
        what,
        ...spreadCells(each),
        figure(since_ready_ms),
        String(fenced),
        String(offline),
        String(Object.values(refusals).reduce((sum, n) => sum + n, 0)),
      ]),
    },
  ];
}

function placementTable(decided: Decided[]): Table {
  return {
    title: 'One placement',
    columns: ['', 'p50 µs', 'p90 µs', 'p99 µs', 'most µs', 'decisions'],
    rows: decided.map(({ what, took }) => [what, ...spreadCells(took), figure(took.count)]),
  };
}

function goalsOf(found: Found | null, decided: Decided[]) {
  const whole = found?.nodes === NODES;
  const of = (value: (found: Found) => number) =>
    found === null || !whole ? { missing: `only with ${NODES} nodes and PostgreSQL` } : value(found);
  const others = ({ steady }: Found) =>
    Object.entries(steady.rows).reduce((sum, [table, n]) => sum + (EXPECTED.has(table) ? 0 : n), 0) /
    steady.beats;
  const storms = ({ storms: all }: Found) => all.slice(1);
  const at = `${NODES.toLocaleString('en')} nodes`;
  return [
    goalOf(
      `${at}: share of a core`,
      { most: 25 },
      '%',
      of(({ steady }) => steady.cpu_share * 100),
    ),
    goalOf(
      `${at}: memory`,
      { most: 600 },
      'MiB',
      of(({ steady }) => steady.memory_mib),
    ),
    // A node that is slow for once moves on and back, which is a row; a beat that writes would be one row each.
    goalOf(`${at}: rows a steady beat, but for the flush of all`, { most: 0.001 }, 'rows', of(others)),
    goalOf(
      `${at}: a storm, since somebody listened`,
      { most: 8 },
      's',
      of((one) => Math.max(...storms(one).map(({ since_ready_ms }) => since_ready_ms)) / 1000),
    ),
    goalOf(
      `${at}: fenced or falsely offline`,
      { most: 0 },
      'nodes',
      of((one) => storms(one).reduce((sum, { fenced, offline }) => sum + fenced + offline, 0)),
    ),
    goalOf(
      'a placement at 10,000 nodes and 1,000 models, p99',
      { most: 20 },
      'µs',
      Math.max(...decided.slice(0, 2).map(({ took }) => took.p99)),
    ),
  ];
}
