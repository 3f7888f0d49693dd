import { setTimeout as pause } from 'node:timers/promises';
import type { JobView, NodeView } from '@flotilla/protocol';
import pg from 'pg';
import { seededRandom } from '../support/seeded-random.ts';
import { until } from '../support/until.ts';
import { type Violation, violationsOf } from './check.ts';
import { call, type Clients, openClients } from './clients.ts';
import { breakThings, planFaults } from './faults.ts';
import { type Fleet, openFleet, type Replica } from './fleet.ts';
import { openHistory, readHistory } from './history.ts';
import { storedJobs } from './stored.ts';

/**
 * One run: a fleet, clients that ask it for all that it does, and faults; then peace, and the judgement of what
 * everybody saw.
 *
 *     breaking ──the time is over, or all jobs have ended──▶ calm ──no job is open──▶ read out, stopped, judged
 */
export interface ChaosOptions {
  seed: number;
  jobs: number;
  /** How long things are broken; where jobs are done before, no longer than these need, if `until_done`. */
  for_ms: number;
  until_done: boolean;
  replicas: number;
  nodes: number;
  slots: number;
  heartbeat_ms: number;
  gap_ms: number;
  /** Waiting clients, of streams and of whole answers each. */
  askers: number;
  batch: number;
  /** Where the history is written to. */
  path: string;
  print: (text: string) => void;
}

export interface ChaosResult {
  violations: Violation[];
  faults: Map<string, number>;
  broken_ms: number;
  /** How many jobs were open then; null: nobody knew. */
  open_jobs: number | null;
  /** From the last fault's end to the last job's. */
  settled_ms: number;
  counts: { jobs: number; asked: number; streams: number; wholes: number; whole: number };
}

/** Nothing is broken any more: in so long some open job has ended. A lease, and a brake, have had their time. */
const STUCK_AFTER_MS = 90_000;
const HEALED_WITHIN_MS = 60_000;
const PROGRESS_EVERY_MS = 10_000;
const OPEN_EVERY_MS = 1000;
/** Of faults at once. */
const MOST = 4;
const READERS = 2;
const CANCEL_EVERY_MS = 1000;
const PAGE = 500;

export async function runChaos(options: ChaosOptions): Promise<ChaosResult> {
  const { seed, print } = options;
  const history = openHistory(options.path);
  const fleet = await openFleet(history, {
    ...options,
    random: seededRandom(seed + 1),
    // Most are short; some outlive whoever gave them out, and the lease of a node that is cut off.
    answer_ms: (random) => (random() < 0.03 ? 1000 + 19_000 * random() ** 2 : 5 + 45 * random()),
  });
  const store = storeOf(fleet.postgres.url);
  try {
    print(`${options.replicas} replicas and ${options.nodes} nodes serve`);
    const began_ms = performance.now();
    const over = new AbortController();
    const [clients, work] = startClients(fleet, options, over.signal);
    const calm = new AbortController();
    const breaking = breakThings(
      fleet,
      planFaults(seededRandom(seed), { ...options, most: MOST }),
      calm.signal,
    );
    for (let told_ms = 0; performance.now() - began_ms < options.for_ms; ) {
      await pause(500);
      const open = await store.open();
      if (performance.now() - told_ms > PROGRESS_EVERY_MS) {
        print(`${clients.acknowledged.size} jobs acknowledged, ${open ?? '?'} open`);
        told_ms = performance.now();
      }
      if (options.until_done && clients.acknowledged.size === options.jobs && open === 0) break;
    }
    const open_jobs = (await store.open()) ?? null;
    calm.abort();
    const faults = await breaking;
    history.add({ type: 'calm' });
    const calm_ms = performance.now();
    print(
      `calm after ${seconds(calm_ms - began_ms)} s: ${[...faults].map(([name, count]) => `${count} × ${name}`).join(', ')}`,
    );
    over.abort();
    await work;
    await settle(fleet, store, options);
    const settled_ms = performance.now();
    await readOut(fleet, clients, store);
    await fleet.stop();
    await history.flush();
    const events = await readHistory(history.path);
    const violations = violationsOf(events, { slots: options.slots, stuck_after_ms: STUCK_AFTER_MS });
    const answered = events.filter((event) => event.type === 'answered');
    return {
      violations,
      faults,
      broken_ms: calm_ms - began_ms,
      open_jobs,
      settled_ms: settled_ms - calm_ms,
      counts: {
        jobs: clients.acknowledged.size,
        asked: events.filter((event) => event.type === 'began' && event.work === 'job').length,
        streams: answered.filter(({ work: one }) => one === 'stream').length,
        wholes: answered.filter(({ work: one }) => one === 'whole').length,
        whole: answered.filter(
          ({ status, end, text }) => status === 200 && end === 'closed' && !text.includes('"error"'),
        ).length,
      },
    };
  } finally {
    await store.close();
    await fleet.close();
  }
}

function startClients(fleet: Fleet, options: ChaosOptions, over: AbortSignal): [Clients, Promise<unknown>] {
  const clients = openClients(fleet, seededRandom(options.seed + 2), over);
  const { jobs, batch, for_ms, until_done } = options;
  // Where the time is given the jobs are spread over most of it.
  const every_ms = until_done ? 0 : (0.8 * for_ms * batch) / jobs;
  const work = [clients.submit(jobs, { batch, every_ms }), clients.cancel(CANCEL_EVERY_MS)];
  for (let reader = 0; reader < READERS; reader++) work.push(clients.read());
  for (let asker = 0; asker < options.askers; asker++) work.push(clients.ask('stream'), clients.ask('whole'));
  return [clients, Promise.all(work)];
}

/** Everything is as if nothing had been, within its time; what is not is in the history, and found there. */
async function settle(
  { history, replicas, nodes }: Fleet,
  store: OpenStore,
  { print }: ChaosOptions,
): Promise<void> {
  for (let [least, moved_ms] = [Infinity, performance.now()]; least > 0; ) {
    const open = (await store.open()) ?? least;
    if (open < least) {
      [least, moved_ms] = [open, performance.now()];
      history.add({ type: 'open', jobs: open });
    }
    if (performance.now() - moved_ms > STUCK_AFTER_MS) {
      print(`${least} jobs are still open`);
      break;
    }
    await pause(open > 0 ? OPEN_EVERY_MS : 0);
  }
  const sound = async () => {
    const views = await Promise.all(replicas.map(viewOf));
    return views.every(
      ({ ready, nodes: seen }) =>
        ready === 'ready' && seen.length === nodes.length && seen.every(([, state]) => state === 'online'),
    );
  };
  await until('all replicas and nodes are as before', sound, HEALED_WITHIN_MS).catch(() =>
    print('not all is healed'),
  );
  for (const replica of replicas) history.add({ type: 'view', by: replica.name, ...(await viewOf(replica)) });
}

async function viewOf(replica: Replica): Promise<{ ready: string; nodes: [string, string][] }> {
  const ready = await call<{ status: string }>(replica, 'GET', '/readyz');
  const nodes = await call<{ data: NodeView[] }>(replica, 'GET', '/api/v1/nodes?limit=500');
  return {
    ready: ready?.status ?? 'away',
    nodes: (nodes?.data ?? []).map(({ name, state }) => [name, state]),
  };
}

/** Every job as each replica lists it, and all that the store has. */
async function readOut(
  { history, replicas }: Fleet,
  { acknowledged }: Clients,
  store: OpenStore,
): Promise<void> {
  for (const replica of replicas) {
    for (let after: string | null = ''; after !== null; ) {
      const asked_ms = Math.round(performance.now());
      const page: { data: JobView[]; next_after: string | null } | undefined = await call(
        replica,
        'GET',
        `/api/v1/jobs?limit=${PAGE}${after === '' ? '' : `&after=${after}`}`,
      );
      if (page === undefined) throw new Error(`${replica.name} does not list its jobs.`);
      const own = page.data.filter(({ id }) => acknowledged.has(id));
      history.add({
        type: 'listed',
        by: replica.name,
        asked_ms,
        jobs: own.map(({ id, state }) => [id, state]),
      });
      after = page.next_after;
    }
  }
  for (const row of await store.jobs()) history.add({ type: 'stored', ...row });
  for (const { request_id, succeeded } of await store.records()) {
    const [work, number] = request_id.split('-') as ['stream' | 'whole', string];
    history.add({ type: 'recorded', work, number: Number(number), succeeded });
  }
}

type OpenStore = ReturnType<typeof storeOf>;

/** The database, past the product. */
function storeOf(connectionString: string) {
  const pool = new pg.Pool({
    connectionString,
    max: 1,
    connectionTimeoutMillis: 2000,
    query_timeout: 60_000,
  });
  pool.on('error', () => undefined);
  const rows = async <Row extends object>(text: string) => (await pool.query(text)).rows as Row[];
  return {
    /** Undefined: it does not answer. */
    open: () =>
      rows<{ open: number }>(
        `select count(*)::int as open from jobs where not attached and state in ('queued', 'leased', 'running')`,
      ).then(
        ([row]) => row!.open,
        () => undefined,
      ),
    jobs: () => storedJobs(rows),
    records: () =>
      rows<{ request_id: string; succeeded: number }>(
        `select request_id, count(*) filter (where outcome = 'succeeded')::int as succeeded
         from usage where request_id ~ '^(stream|whole)-[0-9]+$' group by request_id`,
      ),
    close: () => pool.end(),
  };
}

export const seconds = (ms: number) => (ms / 1000).toFixed(1);
