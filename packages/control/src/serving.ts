import {
  type Clock,
  type KnownDescriptor,
  type Log,
  type ProviderRecord,
  type Random,
  type Store,
  periodStarts,
  pseudonymOf,
  servedElsewhereInOrder,
  timings,
} from '@flotilla/core';
import type { Keys } from './accounts/keys.ts';
import { createLimits } from './accounts/limits.ts';
import { createSharedLimits } from './accounts/shared-limits.ts';
import { startSnapshots } from './accounts/snapshots.ts';
import { createBodyMemory } from './body-memory.ts';
import type { Shared } from './bus/shared.ts';
import type { ControlConfig } from './config.ts';
import { startDetached } from './detached/detached.ts';
import { RESERVATIONS_MOST } from './detached/reservations.ts';
import { startDiscoveries } from './discovery/discoveries.ts';
import { createDispatcher, type Dispatcher } from './dispatch/dispatcher.ts';
import { openJobs } from './dispatch/open-jobs.ts';
import { createFleet } from './fleet/fleet.ts';
import { createRoster, type Roster } from './fleet/roster.ts';
import { createGateway } from './gateway/gateway.ts';
import { startPeers } from './peers/peers.ts';
import type { Records } from './records.ts';
import { DEAD_BEATS, type Replica } from './replica.ts';
import type { Sealer } from './secrets/sealer.ts';
import type { Metrics } from './telemetry/metrics.ts';
import type { Traces } from './telemetry/traces.ts';
import { createModelRoutes } from './upstreams/model-routes.ts';
import { createProviders, type Providers } from './upstreams/providers.ts';

/** What serving stands on. None of it opens a port or a file: a simulation gives its own of each. */
export interface ServingDeps {
  config: ControlConfig;
  log: Log;
  random: Random;
  clock: Clock;
  /** The same time, whose timers do not keep the process alive. */
  background: Clock;
  store: Store;
  replica: string;
  /** Null: there are no others. */
  shared: Shared | null;
  membership: Pick<Replica, 'bumpAge_ms'>;
  metrics: Metrics;
  traces: Traces;
  keys: Keys;
  records: Records;
  sealer: Sealer | null;
  /** What nodes offer, as far as it was read before. */
  known: KnownDescriptor;
  /** Until when a stop waits for the store, by the clock's `now_ms`. */
  flushBy(): number;
}

/** Roster, scheduler, links and gateway, with the first snapshot of keys and nodes loaded. */
export async function assembleServing(deps: ServingDeps, undo: (() => Promise<unknown>)[]) {
  const { config, log, random, clock, background, store, replica, shared, membership } = deps;
  const { metrics, traces, keys, records } = deps;
  const hints = shared?.hints ?? null;
  // Of several replicas the same, for a loop may lead back through another one.
  const pseudonym = pseudonymOf(shared === null ? replica : await store.installation());
  const timing = timings(config.heartbeat_ms);
  const memory = createBodyMemory(config.body_memory_bytes);
  const roster = createRoster(clock, timing);
  const providers = createProviders({
    clock,
    background,
    log,
    dispatcher: () => dispatcher,
    connect_timeout_ms: config.connect_timeout_ms,
    proxies: config,
    user_agent: 'flotilla',
    pseudonym,
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
    clock: background,
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
    bumpAge_ms: () => membership.bumpAge_ms(),
    timings: timing,
    roster,
    known: deps.known,
    dispatcher,
    discoveries,
    changed: () => changed(),
    beat: () => metrics.beatReceived(),
    differed: () => metrics.countsDiffered(),
  });
  const snapshots = await startSnapshots({
    store,
    clock: background,
    log,
    keys: (records) => keys.replace(records),
    async nodes() {
      await fleet.refresh();
      const records = await store.loadRoutes();
      const upstreams = await store.loadProviders();
      if (upstreams.length > 0) await providers.prepare();
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
  const limits =
    shared === null
      ? createLimits(clock, await store.loadSpending(periodStarts(clock.wall_ms())))
      : createSharedLimits({
          clock,
          background,
          log,
          store,
          replica,
          hints: shared.hints,
          keyOf: (id) => keys.find(id),
          bumpAge_ms: () => membership.bumpAge_ms(),
          dead_ms: DEAD_BEATS * config.heartbeat_ms,
        });
  undo.push(async () => {
    if ('close' in limits) await limits.close(deps.flushBy());
  });
  const gateway = createGateway({
    clock,
    random,
    log,
    replica,
    pseudonym,
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
    // Over the bus, who takes another for dead has looked on for longer. Alone on a database it has not: the one before
    // may have been cut off from it, and goes on renewing until its last bump is H old.
    predecessor_renews_ms: shared === null && store.engine === 'postgres' ? config.heartbeat_ms : 0,
    memory,
    settings: config,
    metrics,
    limits,
    keys,
    reservations: shared === null ? await store.loadReservations(RESERVATIONS_MOST) : [],
    traces,
  });
  undo.push(() => detached.close(deps.flushBy()));
  const peers =
    shared === null
      ? null
      : startPeers({
          ...shared,
          clock: background,
          random,
          log,
          replica,
          roster,
          dispatcher,
          memory,
          queue_bound: config.queue_bound,
        });
  undo.push(() => Promise.resolve(peers?.close()));
  watchGauges(metrics, roster, providers, dispatcher, () => records.waiting() + detached.waiting());
  shared?.questions.on('cancel', ({ job, message }) => {
    const own = dispatcher.jobs.get(job);
    if (own !== undefined) dispatcher.cancel(own, message);
    return own !== undefined;
  });
  const everywhere = () => [...roster.all(), ...[...providers.all()].map(({ node }) => node)];
  const others = () => [...(shared?.others() ?? [])];
  const jobs = openJobs(dispatcher, everywhere, {
    cancel: (job, message) =>
      others().map((other) => shared!.questions.ask(other, { type: 'cancel', job, message })),
    explain: (job) => others().map((other) => shared!.questions.ask(other, { type: 'explain', job })),
  });
  shared?.questions.on('explain', ({ job }) => jobs.explain(job) ?? null);
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
    jobs,
  };
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
