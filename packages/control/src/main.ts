import {
  type Clock,
  type JobRecord,
  type Log,
  type Random,
  type Settlement,
  type Store,
  timings,
} from '@flotilla/core';
import { makeId } from '@flotilla/protocol';
import type { FastifyInstance } from 'fastify';
import type { AddressInfo } from 'node:net';
import { createKeys, ensureAdminKey, type Keys } from './accounts/keys.ts';
import { createLimits } from './accounts/limits.ts';
import { createSlowdown } from './accounts/slowdown.ts';
import { startSnapshots } from './accounts/snapshots.ts';
import { backgroundClock, systemClock, systemRandom } from './clock.ts';
import type { ControlConfig } from './config.ts';
import { createDispatcher, type Dispatcher } from './dispatch/dispatcher.ts';
import { openJobs } from './dispatch/open-jobs.ts';
import { createFleet } from './fleet/fleet.ts';
import { createRoster, type Roster } from './fleet/roster.ts';
import { createGateway } from './gateway/gateway.ts';
import { createHttpServer } from './http/server.ts';
import { joinAlone } from './replica.ts';
import { startRetention } from './retention.ts';
import { Batcher } from './store/batcher.ts';
import { openStore } from './store/open.ts';
import { openLog } from './telemetry/log.ts';
import { createMetrics, type Metrics } from './telemetry/metrics.ts';

/**
 * One control plane, put together and taken apart.
 *
 *     starting: store ─▶ alone on it ─▶ admin key ─▶ snapshots ─▶ listening ─▶ ready
 *     stopping: not ready ─▶ gateway drained ─▶ links closed ─▶ server closed ─▶ records flushed ─▶ store closed
 *
 * What was opened is closed in the reverse order, also when a later step of the start fails.
 */
export interface RunningControl {
  /** Where this machine reaches it. */
  readonly url: string;
  readonly port: number;
  /** Resolves when it has stopped, whoever asked for it. */
  readonly closed: Promise<void>;
  /** Stops it in good order; calling it again changes nothing. */
  close(): Promise<void>;
}

export interface ControlOptions {
  /** Instead of JSON lines on stderr. */
  log?: Log;
  random?: Random;
}

/** A start that failed for a reason that its operator can act on; the message is meant for them. */
export class StartError extends Error {
  override readonly name = 'StartError';
}

/** Answers that are still going out when the server closes get this long. */
const LAST_ANSWERS_MS = 2000;
/** A row of a job under way is worth having, not worth waiting for. */
const RECORD_OPEN_WITHIN_MS = 5000;

/** @throws StartError when the port is taken; what the store says when it cannot be opened */
export async function runControl(
  config: ControlConfig,
  options: ControlOptions = {},
): Promise<RunningControl> {
  const log = options.log ?? openLog(config.log_level);
  for (const warning of config.warnings) log.warn({}, warning);
  const base: Base = { config, log, random: options.random ?? systemRandom, clock: systemClock };
  const undo: Undo = [];
  try {
    return await start(base, undo);
  } catch (error) {
    await undoAll(undo, log);
    throw error;
  }
}

interface Base {
  config: ControlConfig;
  log: Log;
  random: Random;
  clock: Clock;
}
/** How to close what was opened, last first. */
type Undo = (() => Promise<unknown>)[];

async function undoAll(undo: Undo, log: Log): Promise<void> {
  for (const step of undo.splice(0).reverse()) {
    await step().catch((error: unknown) =>
      log.error({ error }, 'A step of stopping failed; the others go on.'),
    );
  }
}

async function start(base: Base, undo: Undo): Promise<RunningControl> {
  const { config, log, random, clock } = base;
  const metrics = createMetrics();
  const replica = makeId('replica', clock.wall_ms(), random.bytes(10));
  const store = await openOwnStore(base, replica, undo);
  const keys = createKeys({ store, clock: backgroundClock, log });
  undo.push(() => keys.close());
  const records = openRecords(store, metrics, base);
  undo.push(() => records.close());

  const serving = await assembleServing({ ...base, store, replica, metrics, keys, records }, undo);
  let stopping = false;
  const app = createHttpServer({
    ...base,
    ...serving,
    store,
    metrics,
    keys,
    slowdown: createSlowdown(clock),
    stopping: () => stopping,
  });
  undo.push(() => closeServer(app));
  undo.push(() => serving.fleet.close());
  await listen(app, config);
  const retention = startRetention({ store, clock: backgroundClock, random, log, ...config });
  undo.push(() => retention.stop());
  undo.push(() => serving.gateway.drain(config.drain_timeout_ms));

  const { port } = app.server.address() as AddressInfo;
  const url = localUrl(config.host, port);
  log.info({ url, replica, heartbeat_ms: config.heartbeat_ms }, `Listening at ${url}.`);
  const { promise: closed, resolve } = Promise.withResolvers<void>();
  let closing: Promise<void> | undefined;
  const close = () => {
    stopping = true;
    closing ??= undoAll(undo, log).then(() => {
      log.info({}, 'Stopped.');
      resolve();
    });
    return closing;
  };
  return { url, port, closed, close };
}

/** The store, with this process alone on it and the first key in it. */
async function openOwnStore(
  { config, log, random, clock }: Base,
  replica: string,
  undo: Undo,
): Promise<Store> {
  const { database_url, data_dir } = config;
  const store = await openStore(database_url === undefined ? { data_dir } : { database_url }, log);
  undo.push(() => store.close());
  log.info(
    { store: store.engine },
    `Store: ${store.engine}. An acknowledged write survives ${store.durability}.`,
  );
  const alone = await joinAlone({ store, clock: backgroundClock, log, id: replica });
  undo.push(() => alone.leave());
  if (config.admin_key !== undefined) await ensureAdminKey(config.admin_key, { store, clock, random, log });
  return store;
}

interface Records {
  settlements: Batcher<Settlement, unknown>;
  /** A request has been open for long enough to have a row. */
  record: (job: JobRecord) => void;
  waiting: () => number;
  close(): Promise<void>;
}

/** The batched writers of requests: their ends, and those that take long while they run. */
function openRecords(store: Store, metrics: Metrics, { log, clock }: Base): Records {
  const common = { ping: () => store.ping(), clock, flushed: metrics.storeFlushed };
  const settlements = new Batcher<Settlement, unknown>({ ...common, flush: (rows) => store.settle(rows) });
  const open = new Batcher<JobRecord, unknown>({ ...common, flush: (rows) => store.recordOpen(rows) });
  return {
    settlements,
    record(job) {
      open.add(job, clock.now_ms() + RECORD_OPEN_WITHIN_MS).catch((error: unknown) => {
        log.debug({ error, job: job.id }, 'An open request has no row; its settlement will make it.');
      });
    },
    waiting: () => settlements.waiting + open.waiting,
    close: () => Promise.all([settlements.close(), open.close()]).then(() => undefined),
  };
}

interface ServingDeps extends Base {
  store: Store;
  replica: string;
  metrics: Metrics;
  keys: Keys;
  records: Records;
}

/** Roster, scheduler, links and gateway, with the first snapshot of keys and nodes loaded. */
async function assembleServing(deps: ServingDeps, undo: Undo) {
  const { config, log, random, clock, store, replica, metrics, keys, records } = deps;
  const timing = timings(config.heartbeat_ms);
  const roster = createRoster(clock, timing);
  const dispatcher = createDispatcher({
    clock,
    random,
    log,
    replica,
    roster,
    settings: config,
    metrics,
    record: records.record,
  });
  let changed = () => {};
  const fleet = createFleet({
    clock,
    random,
    log,
    store,
    replica,
    timings: timing,
    roster,
    dispatcher,
    changed: () => changed(),
    beat: () => metrics.beatReceived(),
  });
  const snapshots = await startSnapshots({
    store,
    clock: backgroundClock,
    log,
    keys: (records) => keys.replace(records),
    nodes: () => fleet.refresh(),
  });
  undo.push(() => snapshots.close());
  changed = () => void snapshots.changed();
  const limits = createLimits(clock);
  const gateway = createGateway({
    clock,
    random,
    replica,
    roster,
    dispatcher,
    metrics,
    settlements: records.settlements,
    admit: (principal) => limits.admit(principal),
    stall_ms: config.client_stall_timeout_ms,
  });
  watchGauges(metrics, roster, dispatcher, records);
  return { fleet, gateway, snapshots, jobs: openJobs(dispatcher) };
}

async function listen(app: FastifyInstance, { host, port }: ControlConfig): Promise<void> {
  try {
    await app.listen({ host, port });
  } catch (error) {
    throw asStartError(error, host, port);
  }
}

function asStartError(error: unknown, host: string, port: number): unknown {
  switch ((error as NodeJS.ErrnoException).code) {
    case 'EADDRINUSE':
      return new StartError(
        `Port ${port} on ${host} is taken: another program, or another Flotilla, listens there. ` +
          'Choose another with --port or FLOTILLA_PORT.',
        { cause: error },
      );
    case 'EACCES':
      return new StartError(`This user may not listen on port ${port}. Ports from 1024 on are free to use.`, {
        cause: error,
      });
    case 'EADDRNOTAVAIL':
    case 'ENOTFOUND':
      return new StartError(
        `${host} is no address of this machine. Set another with --host or FLOTILLA_HOST.`,
        {
          cause: error,
        },
      );
    default:
      return error;
  }
}

/** Stops listening; what still runs after the drain is given a moment, then cut. */
async function closeServer(app: FastifyInstance): Promise<void> {
  const cut = systemClock.after(LAST_ANSWERS_MS, () => app.server.closeAllConnections());
  try {
    await app.close();
  } finally {
    cut.cancel();
  }
}

function watchGauges(metrics: Metrics, roster: Roster, dispatcher: Dispatcher, records: Records): void {
  metrics.watch({
    storeWaiting: records.waiting,
    offersModel: (model) => roster.spots(model).length > 0,
    queueDepths: () => [...dispatcher.lanes.byCapability].map(([model, { count }]) => [model, count]),
    leases: () => [...roster.all()].reduce((sum, node) => sum + node.ledger.holders.size, 0),
    links: () => [...roster.all()].filter((node) => node.link?.open === true).length,
    *nodeStates() {
      for (const node of roster.all()) yield [node.state, 1];
    },
  });
}

/** Of an address that stands for all of them, the loopback one. */
function localUrl(host: string, port: number): string {
  const reachable = host === '0.0.0.0' ? '127.0.0.1' : host === '::' ? '::1' : host;
  return `http://${reachable.includes(':') ? `[${reachable}]` : reachable}:${port}`;
}
