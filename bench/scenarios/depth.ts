import pg from 'pg';
import { openStore } from '../../packages/control/src/store/open.ts';
import { freshDatabase, quiet } from '../../tests/support/store.ts';
import { aDetachedJob, aFinish } from '../../tests/conformance/detached-rows.ts';
import { median, Samples, type Spread, spreadOf } from '../histogram.ts';
import { figure } from '../figure.ts';
import { goalOf, type Report, SPREAD_COLUMNS, spreadCells, type Table } from '../report.ts';
import { interleave } from '../rounds.ts';
import type { Scenario, Stage } from '../scenario.ts';

/** What a claim costs with nothing, much and very much in the queue, and while somebody holds a transaction open. */
const DEPTHS = [0, 100_000, 1_000_000];
const QUICK_DEPTHS = [0, 20_000];
const LANES = 1000;
/** As much as one statement of the control plane asks for. */
const LANES_A_CLAIM = 16;
const JOBS_A_LANE = 16;
const CLAIMED = LANES_A_CLAIM * JOBS_A_LANE;
const BYTES_MOST = 256 * 1024 * 1024;
const WARM_CLAIMS = 50;
const WINDOWS_HELD = 5;
const NODE = 'node_bench';
const REPLICA = 'rep_bench';

interface Measured {
  depth: number;
  /** Null: nobody held one. */
  held_s: number | null;
  claims: number;
  jobs_per_second: number;
  claim: Spread;
}

export const depth: Scenario = {
  name: 'depth',
  about: 'claims with up to a million jobs queued, and with a transaction held open',
  async run(stage) {
    const { database_url } = stage.place;
    if (database_url === undefined) return reportOf([], stage);
    const found: Measured[] = [];
    const queues: Queue[] = [];
    try {
      for (const queued of stage.quick ? QUICK_DEPTHS : DEPTHS) {
        stage.say(`${queued} jobs are queued.`);
        const queue = await openQueue(database_url, queued);
        queues.push(queue);
        for (let n = 0; n < WARM_CLAIMS; n++) await queue.turn();
      }
      // As long as those that are held against them: the p99 of a few claims would be the slowest of them.
      const window_ms = stage.held_ms / WINDOWS_HELD;
      const calm = await interleave(queues, stage.rounds, (queue) => window(queue, window_ms));
      for (const [{ queued }, windows] of calm)
        found.push(...windows.map((one) => ({ depth: queued, held_s: null, ...one })));
      stage.say(`Transactions are held open while each is at work for ${stage.held_ms / 1000} s.`);
      const began_ms = performance.now();
      for (const queue of queues) await queue.hold();
      const held = await interleave(queues, WINDOWS_HELD, async (queue) => {
        const measured = await window(queue, window_ms);
        return { held_s: (performance.now() - began_ms) / 1000, ...measured };
      });
      for (const [{ queued }, windows] of held)
        found.push(...windows.map((one) => ({ depth: queued, ...one })));
    } finally {
      for (const queue of queues) await queue.close();
    }
    return reportOf(found, stage);
  },
};

/** Many lanes, all equally long, each in the order of its keys. */
async function fill(client: pg.Client, jobs: number): Promise<void> {
  const now = Date.now();
  const id = `'job_' || lpad(n::text, 26, '0')`;
  await client.query(
    `insert into jobs (id, kind, attached, state, replica, model, operation, request_id, lane, order_key, priority,
       metadata, on_node_loss, max_attempts, queue_timeout_ms, run_timeout_ms, created_at, deadline_at)
     select ${id}, 'inference', false, 'queued', '${REPLICA}', 'model-' || n % ${LANES}, 'chat', 'r' || n,
       'lane-' || n % ${LANES}, $1::bigint + n, 0, '{}', 'requeue', 3, 86400000, 600000, $1, $1::bigint + 86400000
     from generate_series(1, $2::int) n`,
    [now, jobs],
  );
  await client.query(
    `insert into job_bodies (job, request, retention_ms)
     select ${id}, '{"model":"m","messages":[]}', 86400000 from generate_series(1, $1::int) n`,
    [jobs],
  );
  await client.query('vacuum analyze jobs');
  await client.query('vacuum analyze job_bodies');
}

interface Queue {
  queued: number;
  /**
   * As many jobs come as are claimed, at the ends of their lanes, and what is claimed, from the lanes’ heads, is done. So
   * the queue stays as long as it was; at 0 what is claimed is what has just come.
   * @returns how long the claim took
   */
  turn(): Promise<number>;
  /** From now on nothing that is dead can be cleaned away. */
  hold(): Promise<void>;
  close(): Promise<void>;
}

async function openQueue(server: string, queued: number): Promise<Queue> {
  const place = await freshDatabase(server);
  const store = await openStore({ database_url: place.url }, quiet);
  const client = new pg.Client({ connectionString: place.url });
  await client.connect();
  await fill(client, queued);
  let n = 0;
  let order_key = Date.now() + 10_000_000;
  /** Where each lane goes on, which the control plane remembers as well. */
  const from = new Map<string, number>();
  return {
    queued,
    async turn() {
      const lanes = lanesOf(n);
      n += LANES_A_CLAIM;
      await store.acceptJobs(
        Array.from({ length: CLAIMED }, (_, at) =>
          aDetachedJob({ lane: lanes[at % LANES_A_CLAIM]!, order_key: order_key++ }),
        ),
      );
      const began_ms = performance.now();
      const claimed = await store.claimJobs({
        replica: REPLICA,
        lanes: lanes.map((lane) => ({
          lane,
          node: NODE,
          epoch: 1,
          free: JOBS_A_LANE,
          from_order_key: from.get(lane) ?? 0,
        })),
        limit: CLAIMED,
        bytes_most: BYTES_MOST,
      });
      const took_ms = performance.now() - began_ms;
      for (const job of claimed) from.set(job.lane, job.order_key);
      if (claimed.length !== CLAIMED) throw new Error(`${claimed.length} jobs were claimed of ${CLAIMED}.`);
      await store.finishJobs(claimed.map((job) => aFinish(job)));
      return took_ms;
    },
    async hold() {
      await client.query('begin isolation level repeatable read');
      await client.query('select count(*) from jobs');
    },
    async close() {
      await client.end();
      await store.close();
      await place.drop();
    },
  };
}

async function window(queue: Queue, for_ms: number) {
  const took = new Samples();
  const began_ms = performance.now();
  let claims = 0;
  for (; performance.now() - began_ms < for_ms; claims++) took.add(await queue.turn());
  return {
    claims,
    jobs_per_second: (claims * CLAIMED * 1000) / (performance.now() - began_ms),
    claim: spreadOf(took.values()),
  };
}

function lanesOf(from: number): string[] {
  return Array.from({ length: LANES_A_CLAIM }, (_, at) => `lane-${(from + at) % LANES}`);
}

/** The goals are ratios of percentiles: of an empty queue to a full one, of windows without a transaction to the last with it. */
function p99Of(found: Measured[], queued: number): number {
  return median(
    found.filter((one) => one.depth === queued && one.held_s === null).map(({ claim }) => claim.p99),
  );
}

function reportOf(found: Measured[], stage: Stage): Report {
  const depths = [...new Set(found.map((one) => one.depth))];
  const left_out = found.length > 0 ? '' : ' Left out: no PostgreSQL, give DATABASE_URL.';
  return {
    name: 'depth',
    title: 'Claims from a long queue',
    about:
      `The store’s own operations on PostgreSQL, from one process: ${CLAIMED} jobs come at the ends of ${LANES_A_CLAIM} of ` +
      `${LANES.toLocaleString('en')} lanes, one statement claims as many from their heads (this is what is timed), and they are done. ` +
      'So the queue stays as long as it was; at 0 what is claimed has just come. Then the same while another session holds a ' +
      'REPEATABLE READ transaction open, so that nothing that is dead can be cleaned away; its windows follow one another, and the ' +
      `goal is judged by the last. Each depth is at work for ${figure(stage.held_ms / 60_000)} minutes of that; all windows are equally long. The depths take turns.${left_out}`,
    goals: goalsOf(found),
    tables: depths.map((queued) => tableOf(found, queued)),
    plots: [
      {
        name: 'claims',
        title: `One claim of ${CLAIMED}`,
        unit: 'ms',
        groups: (['p50', 'p99'] as const).map((share) => ({
          label: share,
          bars: depths.flatMap((queued) => {
            const own = found.filter((one) => one.depth === queued);
            const calm = own.filter(({ held_s }) => held_s === null).map(({ claim }) => claim[share]);
            const name = `${queued.toLocaleString('en')} queued`;
            return [
              { name, value: median(calm) },
              { name: `${name}, held`, value: own.at(-1)!.claim[share] },
            ];
          }),
        })),
      },
    ],
    data: found,
  };
}

function tableOf(found: Measured[], queued: number): Table {
  return {
    title: `${queued.toLocaleString('en')} jobs queued: one claim of ${CLAIMED}`,
    columns: ['', ...SPREAD_COLUMNS, 'claims', 'whole turns, jobs a second'],
    rows: found
      .filter((one) => one.depth === queued)
      .map(({ held_s, claim, claims, jobs_per_second }) => [
        held_s === null ? 'as it is' : `a transaction open for ${figure(held_s)} s`,
        ...spreadCells(claim),
        String(claims),
        figure(jobs_per_second),
      ]),
  };
}

function goalsOf(found: Measured[]) {
  const most = DEPTHS.at(-1)!;
  const whole = found.some((one) => one.depth === most);
  const missing = { missing: `only with PostgreSQL and ${most.toLocaleString('en')} jobs` };
  const held = (queued: number) => found.filter((one) => one.depth === queued && one.held_s !== null).at(-1)!;
  return [
    goalOf(
      `${most.toLocaleString('en')} queued: p99 of a claim, to that of an empty queue`,
      { most: 1.2 },
      '×',
      whole ? p99Of(found, most) / p99Of(found, 0) : missing,
    ),
    ...DEPTHS.map((queued) =>
      goalOf(
        `${queued.toLocaleString('en')} queued: p99 of a claim with a transaction held open, to without`,
        { most: 1.25 },
        '×',
        found.some((one) => one.depth === queued) ? held(queued).claim.p99 / p99Of(found, queued) : missing,
      ),
    ),
  ];
}
