import pg from 'pg';
import { openStore } from '../../packages/control/src/store/open.ts';
import { freshDatabase, quiet } from '../../tests/support/store.ts';
import { aDetachedJob, aFinish } from '../../tests/conformance/detached-rows.ts';
import { median, Samples, type Spread, spreadOf } from '../histogram.ts';
import { figure } from '../figure.ts';
import { interrupt } from '../interrupt.ts';
import { goalOf, type Report, SPREAD_COLUMNS, spreadCells, type Table } from '../report.ts';
import { interleave, ratio } from '../rounds.ts';
import type { Scenario, Stage } from '../scenario.ts';

/**
 * What a claim costs with nothing, much and very much in the queue, and while somebody holds a transaction open. Of each
 * depth there are two queues, and on one of them nobody does: jobs that are done stay, so a queue that has been at work for longer is
 * in a larger database, and that alone makes it slower once the server's buffers are full.
 */
const DEPTHS = [0, 100_000, 1_000_000];
const QUICK_DEPTHS = [0, 20_000];
const LANES = 1000;
/** As much as one statement of the control plane asks for. */
const LANES_A_CLAIM = 16;
const JOBS_A_LANE = 16;
const CLAIMED = LANES_A_CLAIM * JOBS_A_LANE;
const BYTES_MOST = 256 * 1024 * 1024;
const WARM_CLAIMS = 50;
const WINDOWS = 5;
const NODE = 'node_bench';
const REPLICA = 'rep_bench';

interface Measured {
  depth: number;
  held: boolean;
  /** Since the transactions were opened. */
  after_s: number;
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
    const queues: Queue[] = [];
    try {
      for (const queued of stage.quick ? QUICK_DEPTHS : DEPTHS) {
        for (const held of [false, true]) {
          stage.say(`${queued} jobs are queued.`);
          const queue = await openQueue(database_url, queued, held);
          queues.push(queue);
          for (let n = 0; n < WARM_CLAIMS; n++) await queue.turn();
        }
      }
      stage.say(
        `Each is at work for ${stage.held_ms / 1000} s while transactions are held open on half of them.`,
      );
      const began_ms = performance.now();
      for (const queue of queues) if (queue.held) await queue.hold();
      const found = await interleave(queues, WINDOWS, async (queue) => {
        const measured = await window(queue, stage.held_ms / WINDOWS);
        const { queued, held } = queue;
        return { depth: queued, held, after_s: (performance.now() - began_ms) / 1000, ...measured };
      });
      return reportOf([...found.values()].flat(), stage);
    } finally {
      for (const queue of queues) await queue.close();
    }
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
  held: boolean;
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

async function openQueue(server: string, queued: number, held: boolean): Promise<Queue> {
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
    held,
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
  for (; performance.now() - began_ms < for_ms && !interrupt.signal.aborted; claims++)
    took.add(await queue.turn());
  return {
    claims,
    jobs_per_second: (claims * CLAIMED * 1000) / (performance.now() - began_ms),
    claim: spreadOf(took.values()),
  };
}

function lanesOf(from: number): string[] {
  return Array.from({ length: LANES_A_CLAIM }, (_, at) => `lane-${(from + at) % LANES}`);
}

/** The windows of one queue, in their order. */
function windowsOf(found: Measured[], queued: number, held: boolean): Measured[] {
  return found.filter((one) => one.depth === queued && one.held === held);
}

function p99s(windows: Measured[]): number[] {
  return windows.map(({ claim }) => claim.p99);
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
      'So the queue stays as long as it was; at 0 what is claimed has just come. Jobs that are done stay. Of each depth there are two ' +
      'queues, each in a database of its own; on one of them another session holds a REPEATABLE READ transaction open all the while, ' +
      `so that nothing that is dead can be cleaned away. They take turns in ${WINDOWS} rounds, and each is at work for ` +
      `${figure(stage.held_ms / 60_000)} minutes; ratios are of pairs of a round: the median, the lowest and the highest.${left_out}`,
    goals: goalsOf(found),
    tables: depths.map((queued) => tableOf(found, queued)),
    plots: [
      {
        name: 'claims',
        title: `One claim of ${CLAIMED}`,
        unit: 'ms',
        groups: (['p50', 'p99'] as const).map((share) => ({
          label: share,
          bars: depths.flatMap((queued) =>
            [false, true].map((held) => ({
              name: `${queued.toLocaleString('en')} queued${held ? ', held' : ''}`,
              value: median(windowsOf(found, queued, held).map(({ claim }) => claim[share])),
            })),
          ),
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
    rows: [false, true].flatMap((held) =>
      windowsOf(found, queued, held).map(({ after_s, claim, claims, jobs_per_second }) => [
        held ? `a transaction open for ${figure(after_s)} s` : `none, after ${figure(after_s)} s`,
        ...spreadCells(claim),
        String(claims),
        figure(jobs_per_second),
      ]),
    ),
  };
}

function goalsOf(found: Measured[]) {
  const most = DEPTHS.at(-1)!;
  const missing = { missing: `only with PostgreSQL and ${most.toLocaleString('en')} jobs` };
  const compared = (of: Measured[], to: Measured[]) =>
    of.length === 0 ? missing : ratio(p99s(of), p99s(to));
  return [
    goalOf(
      `${most.toLocaleString('en')} queued: p99 of a claim, to that of an empty queue`,
      { most: 1.2 },
      '×',
      compared(windowsOf(found, most, false), windowsOf(found, 0, false)),
    ),
    ...DEPTHS.map((queued) =>
      goalOf(
        `${queued.toLocaleString('en')} queued: p99 of a claim with a transaction held open, to without`,
        { most: 1.25 },
        '×',
        compared(windowsOf(found, queued, true), windowsOf(found, queued, false)),
      ),
    ),
  ];
}
