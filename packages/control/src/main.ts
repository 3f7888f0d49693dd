import type { Clock, Log, Random, Store } from '@flotilla/core';
import { makeId } from '@flotilla/protocol';
import type { FastifyInstance } from 'fastify';
import type { Server as TlsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { createKeys, ensureAdminKey } from './accounts/keys.ts';
import { createSlowdown } from './accounts/slowdown.ts';
import { type Shared, sharedOver } from './bus/shared.ts';
import { backgroundClock, systemClock, systemRandom } from './clock.ts';
import type { ControlConfig } from './config.ts';
import { createReadAhead, type ReadAhead } from './fleet/read-ahead.ts';
import { createHttpServer } from './http/server.ts';
import { keepTlsFresh, loadTls, TlsError, type TlsFiles, type TlsPair, warnOfExpiry } from './http/tls.ts';
import { openRecords } from './records.ts';
import { joinReplicas, type Replica, type ReplicaDeps } from './replica.ts';
import { startRetention } from './retention.ts';
import { openSealer } from './secrets/sealer.ts';
import { assembleServing } from './serving.ts';
import { openStore } from './store/open.ts';
import { openLog } from './telemetry/log.ts';
import { createMetrics } from './telemetry/metrics.ts';
import { NO_TRACES, type Traces } from './telemetry/traces.ts';

/**
 * One control plane, put together and taken apart.
 *
 *     starting: store ─▶ alone on it ─▶ admin key ─▶ snapshots ─▶ listening ─▶ ready
 *     stopping: not ready ─▶ gateway drained ─▶ port closed ─▶ links closed ─▶ server closed ─▶ records flushed ─▶ store closed
 *
 * Detached work is not waited for: nodes go on with it, and the store knows of it.
 * What was opened is closed in the reverse order, also when a later step of the start fails.
 */
export interface RunningControl {
  /** Where this machine reaches it. */
  readonly url: string;
  /** In words: there, and where else it listens. */
  readonly listening: string;
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
  'Its nodes and jobs are with the others by now, so it stops; start it again.';

/**
 * Connections that wait to be accepted: as many nodes may dial in the same second. What finds no place is dialled again by
 * the kernel of its machine after 1, 3, 7 s, which is longer than all else of a storm. Systems have a limit of their own
 * (Linux `net.core.somaxconn`, 4096), and take the lower one.
 */
const BACKLOG = 16_384;
/** Answers that are still going out when the server closes get this long. */
const LAST_ANSWERS_MS = 2000;
/** A process that stops while its store is away does not stay for it: all that still waits for it has this long, together. */
export const FLUSH_WITHIN_MS = 15_000;
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
  const random = options.random ?? systemRandom;
  const base: Base = { config, log, random, clock, background: backgroundClock, flushBy };
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
  background: Clock;
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
  let renewed = () => {};
  /** Those that died before anybody could be told. */
  const early: string[] = [];
  let died = (other: string): void => {
    early.push(other);
  };
  const { store, membership, ahead } = await openOwnStore(
    base,
    replica,
    {
      failed: () => storeFailed(),
      renewed: () => renewed(),
      buried: () => buried(),
      died: (other) => died(other),
    },
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
  const records = openRecords({ ...base, store, metrics });
  undo.push(() => records.close(base.flushBy()));
  storeFailed = () => records.settlements.suspect();

  const serving = await assembleServing(
    {
      ...base,
      store,
      replica,
      shared,
      membership,
      metrics,
      traces,
      keys,
      records,
      sealer,
      known: ahead.known,
    },
    undo,
  );
  ahead.drop();
  died = (other) => serving.died(other);
  renewed = () => serving.fleet.renewed();
  for (const other of early) died(other);
  let stopping = false;
  const app = createHttpServer({
    ...base,
    ...serving,
    replica,
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
  // Before the links are: their nodes dial again within a second, and ten thousand answers that refuse them take many.
  undo.push(() => Promise.resolve(app.server.close()));
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
  const listening = isWildcard(config.host)
    ? `${url}, and at every other address of this machine (${config.host})`
    : url;
  log.info({ url, replica, heartbeat_ms: config.heartbeat_ms }, `Listening at ${listening}.`);
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
  return { url, listening, port, closed, close };
}

async function openTraces({ config, log, clock }: Base, replica: string, undo: Undo): Promise<Traces> {
  const { otlp_endpoint: endpoint, trace_ratio: ratio, public_url } = config;
  if (endpoint === undefined) return NO_TRACES;
  const wall_ms = () => clock.wall_ms();
  const { startOtlp } = await import('./telemetry/otlp.ts');
  const otlp = await startOtlp({ endpoint, ratio, public_url, replica, log, wall_ms });
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

/** The store, with this process among its replicas and the first key in it, and what was read while it waited to be alone. */
async function openOwnStore(
  { config, log, random, clock }: Base,
  replica: string,
  told: Pick<ReplicaDeps, 'failed' | 'renewed' | 'buried' | 'died'>,
  undo: Undo,
): Promise<{ store: Store; membership: Replica; ahead: ReadAhead }> {
  const { database_url, data_dir } = config;
  const place = database_url === undefined ? { data_dir } : { database_url, replica };
  const store = await openStore(place, log);
  undo.push(() => store.close());
  log.info(
    { store: store.engine },
    `Store: ${store.engine}. An acknowledged write survives ${store.durability}.`,
  );
  const { nats_url, heartbeat_ms } = config;
  const ahead = createReadAhead(store, log);
  const membership = await joinReplicas({
    store,
    clock: backgroundClock,
    log,
    id: replica,
    bus: nats_url !== undefined,
    heartbeat_ms,
    waits: () => ahead.begin(),
    ...told,
  });
  undo.push(() => membership.leave());
  if (config.admin_key !== undefined) await ensureAdminKey(config.admin_key, { store, clock, random, log });
  await ahead.over();
  return { store, membership, ahead };
}

/** @returns null: one replica, without a bus */
async function openShared(
  { config, log, background }: Base,
  store: Store,
  replica: string,
  membership: Replica,
  undo: Undo,
): Promise<Shared | null> {
  if (config.nats_url === undefined) return null;
  const installation = await store.installation();
  // One replica is what most have: the client is loaded for those that have several.
  const { openNats } = await import('./bus/nats.ts');
  const bus = openNats({ url: config.nats_url, installation, replica, clock: background, log });
  undo.push(() => bus.close());
  return sharedOver(bus, membership, background, log);
}

async function listen(app: FastifyInstance, { host, port }: ControlConfig): Promise<void> {
  try {
    await app.listen({ host, port, backlog: BACKLOG });
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

/** What still runs after the drain is given a moment, then cut. */
async function closeServer(app: FastifyInstance): Promise<void> {
  const cut = systemClock.after(LAST_ANSWERS_MS, () => app.server.closeAllConnections());
  try {
    await app.close();
  } finally {
    cut.cancel();
  }
}

function isWildcard(host: string): boolean {
  return host === '0.0.0.0' || host === '::';
}

/** Of an address that stands for all of them, the loopback one. */
function localUrl(scheme: string, host: string, port: number): string {
  const reachable = host === '0.0.0.0' ? '127.0.0.1' : host === '::' ? '::1' : host;
  return `${scheme}://${reachable.includes(':') ? `[${reachable}]` : reachable}:${port}`;
}
