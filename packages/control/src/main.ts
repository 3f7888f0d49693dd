import {
  type Bus,
  type Clock,
  type JobRecord,
  type Log,
  type ProviderRecord,
  type Random,
  type Settlement,
  type Store,
  periodStarts,
  pseudonymOf,
  servedElsewhereInOrder,
  timings,
} from '@flotilla/core';
import { makeId } from '@flotilla/protocol';
import type { FastifyInstance } from 'fastify';
import type { Server as TlsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { createKeys, ensureAdminKey, type Keys } from './accounts/keys.ts';
import { createLimits } from './accounts/limits.ts';
import { createSlowdown } from './accounts/slowdown.ts';
import { startSnapshots } from './accounts/snapshots.ts';
import { backgroundClock, systemClock, systemRandom } from './clock.ts';
import type { ControlConfig } from './config.ts';
import { startDiscoveries } from './discovery/discoveries.ts';
import { createBodyMemory } from './body-memory.ts';
import { startDetached } from './detached/detached.ts';
import { RESERVATIONS_MOST } from './detached/reservations.ts';
import { createDispatcher, type Dispatcher } from './dispatch/dispatcher.ts';
import { openJobs } from './dispatch/open-jobs.ts';
import { createFleet } from './fleet/fleet.ts';
import { createRoster, type Roster } from './fleet/roster.ts';
import { createGateway } from './gateway/gateway.ts';
import { createHttpServer } from './http/server.ts';
import { keepTlsFresh, loadTls, TlsError, type TlsFiles, type TlsPair, warnOfExpiry } from './http/tls.ts';
import { createHints, type Hints } from './bus/hints.ts';
import { openNats } from './bus/nats.ts';
import { startPeers } from './peers/peers.ts';
import { joinReplicas, type Replica, type ReplicaDeps } from './replica.ts';
import { startRetention } from './retention.ts';
import { type Sealer, openSealer } from './secrets/sealer.ts';
import { Batcher } from './store/batcher.ts';
import { openStore } from './store/open.ts';
import { type Otlp, startOtlp } from './telemetry/otlp.ts';
import { NO_TRACES, type Traces } from './telemetry/traces.ts';
import { openLog } from './telemetry/log.ts';
import { createMetrics, type Metrics } from './telemetry/metrics.ts';
import { createModelRoutes } from './upstreams/model-routes.ts';
import { createProviders, type Providers } from './upstreams/providers.ts';

/**
 * One control plane, put together and taken apart.
 *
 *     starting: store ─▶ alone on it ─▶ admin key ─▶ snapshots ─▶ listening ─▶ ready
 *     stopping: not ready ─▶ gateway drained ─▶ links closed ─▶ server closed ─▶ records flushed ─▶ store closed
 *
 * Detached work is not waited for: nodes go on with it, and the store knows of it.
 * What was opened is closed in the reverse order, also when a later step of the start fails.
 */
export interface RunningControl {
  /** Where this machine reaches it. */
  readonly url: string;
  readonly port: number;
  /** Resolves when it has stopped, whoever asked for it; rejects where it had to, with the reason. */
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

const BURIED =
  'This control plane was out of touch with its database for so long that another one has taken its place. ' +
  'Two would each hold half of the nodes, so this one stops.';

/** Answers that are still going out when the server closes get this long. */
const LAST_ANSWERS_MS = 2000;
/** A process that stops while its store is away does not stay for it: all that still waits for it has this long, together. */
export const FLUSH_WITHIN_MS = 15_000;
/** A row of a job under way is worth having, not worth waiting for. */
const RECORD_OPEN_WITHIN_MS = 5000;

/** @throws StartError when the port is taken; what the store says when it cannot be opened */
export async function runControl(
  config: ControlConfig,
  options: ControlOptions = {},
): Promise<RunningControl> {
  const log = options.log ?? openLog(config.log_level);
  for (const warning of config.warnings) log.warn({}, warning);
  const clock = systemClock;
  let flush_by_ms: number | null = null;
  const flushBy = () => (flush_by_ms ??= clock.now_ms() + FLUSH_WITHIN_MS);
  const base: Base = { config, log, random: options.random ?? systemRandom, clock, flushBy };
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
  /** Until when a stop waits for the store, by the clock's `now_ms`; first asked where the first begins to wait. */
  flushBy(): number;
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
  const tls = await openTls(base);
  const metrics = createMetrics();
  const replica = makeId('replica', clock.wall_ms(), random.bytes(10));
  let storeFailed = () => {};
  let buried = () => {};
  /** Those that died before anybody could be told. */
  const early: string[] = [];
  let died = (other: string): void => {
    early.push(other);
  };
  const { store, membership } = await openOwnStore(
    base,
    replica,
    { failed: () => storeFailed(), buried: () => buried(), died: (other) => died(other) },
    undo,
  );
  const shared = await openShared(base, store, replica, membership, undo);
  const traces = await openTraces(base, replica, undo);
  const sealer = await openSealer(config.secret_key, config.secret_key_previous, {
    random,
    clock,
    log,
    store,
  });
  const keys = createKeys({ store, clock: backgroundClock, log });
  undo.push(() => keys.close());
  const records = openRecords(store, metrics, base);
  undo.push(() => records.close(base.flushBy()));
  storeFailed = () => records.settlements.suspect();

  const serving = await assembleServing(
    { ...base, store, replica, shared, metrics, traces, keys, records, sealer },
    undo,
  );
  died = (other) => serving.died(other);
  for (const other of early) died(other);
  let stopping = false;
  const app = createHttpServer({
    ...base,
    ...serving,
    sealer,
    store,
    metrics,
    traces,
    keys,
    slowdown: createSlowdown(clock),
    stopping: () => stopping,
    recorded: () => records.settlements.written(),
    recording: () => records.settlements.failing_since_ms === null,
    bus: shared?.bus ?? null,
    tls: tls?.pair,
  });
  undo.push(() => closeServer(app));
  // Who waits for one is answered before the server closes.
  undo.push(() => serving.discoveries.close());
  undo.push(() => serving.fleet.close());
  await listen(app, config);
  if (tls !== undefined) {
    const server = app.server as unknown as TlsServer;
    const fresh = keepTlsFresh(server, tls.files, tls.pair, { clock: backgroundClock, log });
    undo.push(() => fresh.stop());
  }
  const retention = startRetention({ store, clock: backgroundClock, random, log, ...config });
  undo.push(() => retention.stop());
  undo.push(() => serving.gateway.drain(config.drain_timeout_ms));

  const { port } = app.server.address() as AddressInfo;
  const here = localUrl(tls === undefined ? 'http' : 'https', config.host, port);
  // With TLS it is reached by the name that the certificate is for, from this machine as well.
  const url = tls === undefined ? here : (config.public_url ?? here);
  log.info({ url, replica, heartbeat_ms: config.heartbeat_ms }, `Listening at ${url}.`);
  const { promise: closed, resolve, reject } = Promise.withResolvers<void>();
  closed.catch(() => undefined); // whoever waits for it hears of it
  let closing: Promise<void> | undefined;
  let had_to: Error | null = null;
  const close = () => {
    stopping = true;
    closing ??= undoAll(undo, log).then(() => {
      log.info({}, 'Stopped.');
      if (had_to === null) resolve();
      else reject(had_to);
    });
    return closing;
  };
  buried = () => {
    if (closing !== undefined) return;
    had_to = new StartError(BURIED);
    log.error({ replica }, BURIED);
    void close();
  };
  return { url, port, closed, close };
}

async function openTraces({ config, log, clock }: Base, replica: string, undo: Undo): Promise<Traces> {
  const { otlp_endpoint: endpoint, trace_ratio: ratio, public_url } = config;
  if (endpoint === undefined) return NO_TRACES;
  const wall_ms = () => clock.wall_ms();
  const otlp: Otlp = await startOtlp({ endpoint, ratio, public_url, replica, log, wall_ms });
  undo.push(() => otlp.close());
  return otlp.traces;
}

/** Before anything else is opened: a file that is wrong is the operator's to mend. */
async function openTls({
  config,
  clock,
  log,
}: Base): Promise<{ files: TlsFiles; pair: TlsPair } | undefined> {
  const { tls_cert: cert, tls_key: key } = config;
  if (cert === undefined || key === undefined) return undefined;
  try {
    const files = { cert, key };
    const pair = await loadTls(files);
    warnOfExpiry(pair, clock.wall_ms(), log);
    return { files, pair };
  } catch (error) {
    if (error instanceof TlsError) throw new StartError(error.message, { cause: error });
    throw error;
  }
}

/** The store, with this process among its replicas and the first key in it. */
async function openOwnStore(
  { config, log, random, clock }: Base,
  replica: string,
  told: Pick<ReplicaDeps, 'failed' | 'buried' | 'died'>,
  undo: Undo,
): Promise<{ store: Store; membership: Replica }> {
  const { database_url, data_dir } = config;
  const store = await openStore(database_url === undefined ? { data_dir } : { database_url }, log);
  undo.push(() => store.close());
  log.info(
    { store: store.engine },
    `Store: ${store.engine}. An acknowledged write survives ${store.durability}.`,
  );
  const { nats_url, heartbeat_ms } = config;
  const membership = await joinReplicas({
    store,
    clock: backgroundClock,
    log,
    id: replica,
    bus: nats_url !== undefined,
    heartbeat_ms,
    ...told,
  });
  undo.push(() => membership.leave());
  if (config.admin_key !== undefined) await ensureAdminKey(config.admin_key, { store, clock, random, log });
  return { store, membership };
}

/** What makes this replica one of several: the bus, what is told on it, and who else there is. */
interface Shared {
  bus: Bus;
  hints: Hints;
  lives(replica: string): Promise<boolean>;
  bumpAge_ms(): number;
}

/** @returns null: one replica, without a bus */
async function openShared(
  { config, log }: Base,
  store: Store,
  replica: string,
  membership: Replica,
  undo: Undo,
): Promise<Shared | null> {
  if (config.nats_url === undefined) return null;
  const installation = await store.installation();
  const bus = openNats({ url: config.nats_url, installation, replica, clock: backgroundClock, log });
  undo.push(() => bus.close());
  return {
    bus,
    hints: createHints(bus, log),
    lives: (other) => membership.lives(other),
    bumpAge_ms: () => membership.bumpAge_ms(),
  };
}

interface Records {
  settlements: Batcher<Settlement, unknown>;
  /** A request has been open for long enough to have a row. */
  record: (job: JobRecord) => void;
  waiting: () => number;
  close(latest_ms: number): Promise<void>;
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
    close: (latest_ms) =>
      Promise.all([settlements.close(latest_ms), open.close(latest_ms)]).then(() => undefined),
  };
}

interface ServingDeps extends Base {
  store: Store;
  replica: string;
  shared: Shared | null;
  metrics: Metrics;
  traces: Traces;
  keys: Keys;
  records: Records;
  sealer: Sealer | null;
}

/** Roster, scheduler, links and gateway, with the first snapshot of keys and nodes loaded. */
async function assembleServing(deps: ServingDeps, undo: Undo) {
  const { config, log, random, clock, store, replica, shared, metrics, traces, keys, records } = deps;
  const hints = shared?.hints ?? null;
  const timing = timings(config.heartbeat_ms);
  const memory = createBodyMemory(config.body_memory_bytes);
  const roster = createRoster(clock, timing);
  const providers = createProviders({
    clock,
    background: backgroundClock,
    log,
    dispatcher: () => dispatcher,
    connect_timeout_ms: config.connect_timeout_ms,
    proxies: config,
    user_agent: 'flotilla',
    pseudonym: pseudonymOf(replica),
    traced: config.trace_providers === 'on',
    keyOf: (record) => keyOfProvider(deps.sealer, record),
    elsewhere: ({ job, node }) =>
      servedElsewhereInOrder(job.placement, routes.tiers(job.request.model), node.id),
  });
  undo.push(() => providers.close());
  const routes = createModelRoutes(roster, providers);
  const dispatcher: Dispatcher = createDispatcher({
    clock,
    random,
    log,
    replica,
    places: routes,
    settings: config,
    metrics,
    record: records.record,
  });
  const discoveries = await startDiscoveries({
    clock: backgroundClock,
    random,
    log,
    store,
    roster,
    timeout_ms: config.discovery_timeout_ms,
    ...(hints !== null && { tell: (node: string) => hints.tell({ type: 'discovery', node }) }),
  });
  hints?.on('discovery', () => void discoveries.look());
  undo.push(() => discoveries.close());
  let changed = () => Promise.resolve();
  const fleet = createFleet({
    clock,
    random,
    log,
    store,
    replica,
    shared,
    timings: timing,
    roster,
    dispatcher,
    discoveries,
    changed: () => changed(),
    beat: () => metrics.beatReceived(),
    differed: () => metrics.countsDiffered(),
  });
  const snapshots = await startSnapshots({
    store,
    clock: backgroundClock,
    log,
    keys: (records) => keys.replace(records),
    async nodes() {
      await fleet.refresh();
      const records = await store.loadRoutes();
      const upstreams = await store.loadProviders();
      // Routes first: providers that are new wake who waits for them.
      routes.load(records);
      providers.load(upstreams, records);
    },
  });
  undo.push(() => snapshots.close());
  hints?.on('config', () => void snapshots.changed());
  hints?.onLost(() => void snapshots.changed());
  /** A change made here is told to the others as well. */
  const told = {
    changed() {
      hints?.tell({ type: 'config' });
      return snapshots.changed();
    },
  };
  changed = () => told.changed();
  const mirror = await fleet.follow();
  if (mirror !== null) undo.push(() => mirror.close());
  hints?.on('nodes', () => void mirror?.look());
  hints?.onLost(() => void mirror?.look());
  const limits = createLimits(clock, await store.loadSpending(periodStarts(clock.wall_ms())));
  const gateway = createGateway({
    clock,
    random,
    log,
    replica,
    routes,
    dispatcher,
    metrics,
    traces,
    settlements: records.settlements,
    admit: (key, size) => limits.admit(key, size),
    stall_ms: config.client_stall_timeout_ms,
  });
  const detached = startDetached({
    clock,
    random,
    log,
    store,
    shared,
    mirror,
    replica,
    roster,
    dispatcher,
    lease_ttl_ms: timing.lease_ttl_ms,
    memory,
    settings: config,
    metrics,
    limits,
    keys,
    reservations: await store.loadReservations(RESERVATIONS_MOST),
    traces,
  });
  undo.push(() => detached.close(deps.flushBy()));
  const peers =
    shared === null
      ? null
      : startPeers({
          ...shared,
          clock: backgroundClock,
          random,
          log,
          replica,
          roster,
          dispatcher,
          queue_bound: config.queue_bound,
        });
  undo.push(() => Promise.resolve(peers?.close()));
  watchGauges(metrics, roster, providers, dispatcher, () => records.waiting() + detached.waiting());
  hints?.on('cancel', ({ job, message }) => {
    const own = dispatcher.jobs.get(job);
    if (own !== undefined) dispatcher.cancel(own, message);
  });
  const everywhere = () => [...roster.all(), ...[...providers.all()].map(({ node }) => node)];
  return {
    fleet,
    roster,
    discoveries,
    gateway,
    limits,
    snapshots: told,
    died(other: string) {
      fleet.died(other);
      peers?.died(other);
    },
    detached,
    memory,
    providers,
    routes,
    jobs: openJobs(dispatcher, everywhere, (job, message) => {
      hints?.tell({ type: 'cancel', job, message });
      return shared?.bus.connected ?? false;
    }),
  };
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

/** Bound to the row it lies in. */
function keyOfProvider(sealer: Sealer | null, { id, key_sealed }: ProviderRecord): string | null {
  if (key_sealed === null) return null;
  if (sealer === null) throw new Error('FLOTILLA_SECRET_KEY is not set.');
  return sealer.open(key_sealed, id);
}

function watchGauges(
  metrics: Metrics,
  roster: Roster,
  providers: Providers,
  dispatcher: Dispatcher,
  waiting: () => number,
): void {
  metrics.watch({
    storeWaiting: waiting,
    offersModel: (model) => dispatcher.deps.places.known(model),
    queueDepths: () => [...dispatcher.lanes.byCapability].map(([model, { count }]) => [model, count]),
    leases: () =>
      [...roster.all(), ...[...providers.all()].map(({ node }) => node)].reduce(
        (sum, node) => sum + node.ledger.holders.size,
        0,
      ),
    links: () => [...roster.all()].filter((node) => node.link?.open === true).length,
    *nodeStates() {
      for (const node of roster.all()) yield [node.state, 1];
    },
  });
}

/** Of an address that stands for all of them, the loopback one. */
function localUrl(scheme: string, host: string, port: number): string {
  const reachable = host === '0.0.0.0' ? '127.0.0.1' : host === '::' ? '::1' : host;
  return `${scheme}://${reachable.includes(':') ? `[${reachable}]` : reachable}:${port}`;
}
