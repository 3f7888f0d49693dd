import {
  type Acceptance,
  type Cancellation,
  type Clock,
  type DetachedJob,
  type Log,
  type Random,
  type RequestSize,
  type Reservation,
  type Store,
  type UsageRecord,
  orderKey,
  refund,
  type IdempotentJob,
} from '@flotilla/core';
import { FlotillaError, type Operation, makeId } from '@flotilla/protocol';
import type { Admission } from '../accounts/admission.ts';
import type { Keys } from '../accounts/keys.ts';
import type { Limits } from '../accounts/limits.ts';
import type { BodyMemory } from '../body-memory.ts';
import type { Principal } from '../accounts/principal.ts';
import { gatherHints } from '../bus/gathered-hints.ts';
import type { Hints } from '../bus/hints.ts';
import type { Dispatcher } from '../dispatch/dispatcher.ts';
import type { Mirror } from '../fleet/mirror.ts';
import type { Roster } from '../fleet/roster.ts';
import { Batcher } from '../store/batcher.ts';
import type { Traces } from '../telemetry/traces.ts';
import { createClaims } from './claims.ts';
import { createHeldJobs } from './held-jobs.ts';
import { laneText } from './lane.ts';
import { ReadyLanes } from './ready-lanes.ts';
import { createReservations } from './reservations.ts';
import { createReturns } from './returns.ts';
import { traceEnd } from './trace-end.ts';
import { openTransitions } from './transitions.ts';
import { startUpkeep } from './upkeep.ts';
import { createWatchers, type Watchers } from './watchers.ts';

/**
 * Detached jobs on this replica, put together: accepted into the store, claimed for slots of nodes linked here, carried
 * to their end, looked after by time. The store is the truth; everything here can be lost with the process.
 */
export interface Detached {
  /** A promise that resolves is the 202's. */
  accept(submission: Submission, admission: Admission): Promise<Acceptance>;
  /** What came before with the submission's idempotency key; null: nothing did, or it has none. */
  replayed(submission: Submission): Promise<Acceptance | null>;
  cancel(id: string, message: string): Promise<Cancellation>;
  readonly watchers: Watchers;
  /** Rows that wait to be written. */
  waiting(): number;
  /** @param latest_ms by the clock's `now_ms`: what the store has not taken by then is given up */
  close(latest_ms: number): Promise<void>;
}

/** One job, as far as its client says what it is; the model's name is the one that nodes have. */
export interface Submission {
  principal: Principal;
  /** What it may cost. */
  size: RequestSize;
  model: string;
  operation: Operation;
  request_id: string;
  traceparent: string | null;
  request: string;
  priority: number;
  metadata: Record<string, unknown>;
  queue_timeout_ms: number;
  run_timeout_ms: number;
  retention_ms: number;
  idempotency: { key: string; body_hash: string } | null;
}

export interface DetachedDeps {
  clock: Clock;
  random: Random;
  log: Log;
  store: Store;
  replica: string;
  roster: Roster;
  dispatcher: Dispatcher;
  lease_ttl_ms: number;
  /** See ReturnsDeps. */
  predecessor_renews_ms: number;
  /** Null: this replica is the only one. */
  shared: { hints: Hints; lives(replica: string): Promise<boolean> } | null;
  /** What other replicas write of their nodes; null: there are none. */
  mirror: Mirror | null;
  /** What it has of requests and results. */
  memory: BodyMemory;
  settings: { run_timeout_ms: number; result_limit_bytes: number; body_limit_bytes: number };
  limits: Pick<Limits, 'restore' | 'settled'>;
  keys: Pick<Keys, 'find'>;
  /** Of the jobs that are open at the start. */
  reservations: readonly Reservation[];
  traces: Traces;
  metrics: {
    detachedAccepted(): void;
    detachedEnded(outcome: string): void;
    storeFlushed(report: { rows: number; duration_ms: number; failed: boolean }): void;
  };
}

/** A client waits so long for its 202. */
const ACCEPT_WITHIN_MS = 15_000;
/** In one statement: a whole batch, of small requests. */
const ACCEPTED_MOST = 1000;
const ACCEPTED_BYTES_MOST = 4 * 1024 * 1024;
/** Of the jobs that this process has to do with, at one look for ends that no hint told of: there may be 100,000. */
const LOOKED_AT_MOST = 2000;
const MAX_ATTEMPTS = 3;
const RETRY_MS = 2000;

export function startDetached(deps: DetachedDeps): Detached {
  const { clock, random, log, store, replica, roster, dispatcher, metrics } = deps;
  const local = createWatchers({ clock, log, store });
  const others = deps.shared === null ? null : gatherHints(deps.shared.hints, clock);
  const ready = new ReadyLanes((lane, order_key, priority) => others?.lane(lane, order_key, priority));
  const watchers: Watchers = {
    ...local,
    moved(job) {
      local.moved(job);
      others?.moved(job);
    },
  };
  const flushed: typeof metrics.storeFlushed = (report) => metrics.storeFlushed(report);
  const transitions = openTransitions({ store, clock, flushed });
  const acceptances = new Batcher<DetachedJob, Acceptance>({
    flush: (rows) => store.acceptJobs(rows),
    ping: () => store.ping(),
    clock,
    flushed,
    max_rows: ACCEPTED_MOST,
    weigh: { bytesOf: ({ request }) => request.length, max_bytes: ACCEPTED_BYTES_MOST },
    // The jobs of a batch come in one go: the first would go alone, and all others would wait for its commit.
    gather: () => Promise.resolve(),
  });
  const replays = new Batcher<IdempotentJob, Acceptance | null>({
    flush: (rows) => store.findReplayed(rows),
    ping: () => store.ping(),
    clock,
    max_rows: ACCEPTED_MOST,
    gather: () => Promise.resolve(),
  });
  const reservations = createReservations({
    clock,
    log,
    store,
    limits: deps.limits,
    restored: deps.reservations,
    keyOf: (id) => deps.keys.find(id),
    flushed,
    works: (job) => held.jobs.has(job),
    ended: (usage) => held.stop(usage),
  });
  const held = createHeldJobs({
    clock,
    log,
    grants: dispatcher.grants,
    places: dispatcher.deps.places,
    transitions,
    watchers,
    ready,
    share: dispatcher.share,
    memory: deps.memory,
    settings: deps.settings,
    woken,
    ended,
    told: (word) => reservations.told(word),
    unheard: (job, ours) =>
      void reservations.learn([job], ours).catch((error: unknown) => {
        log.debug({ error, job }, 'Whether a job has ended will be looked for again.');
        upkeep.doubt();
      }),
  });
  let held_back = false;
  /** How far the looks for ends that no hint told of have come. */
  let looked_at = 0;
  const returns = createReturns({
    clock,
    log,
    store,
    replica,
    roster,
    held,
    lease_ttl_ms: deps.lease_ttl_ms,
    predecessor_renews_ms: deps.predecessor_renews_ms,
    lives: (other) => deps.shared?.lives(other) ?? Promise.resolve(other === replica),
    look: () => deps.mirror?.look() ?? Promise.resolve(true),
    heldBack: () => held_back,
  });
  const claims = createClaims({
    clock,
    random,
    log,
    store,
    replica,
    places: dispatcher.deps.places,
    ready,
    room_bytes: () => deps.memory.room(deps.settings.body_limit_bytes),
    largest_bytes: deps.settings.body_limit_bytes,
    offer: (claimed, spot) => held.offer(claimed, spot),
    giveBack: (claimed) =>
      void held
        .lose(claimed, { ...claimed, started: null })
        .catch((error: unknown) => log.debug({ error }, 'A claim was not given back; it will be found.')),
    uncertain: (nodes) => returns.reclaim(nodes),
    results: () => returns.results(),
    freed: (node) => dispatcher.pump(node),
  });
  const upkeep = startUpkeep({
    clock,
    log,
    store,
    expired: ({ usage }) => held.stop(usage),
    learnEnds(of_all) {
      const accepted = [...reservations.jobs()];
      if (of_all) return reservations.learn([...new Set([...accepted, ...held.jobs.keys()])]);
      const from = looked_at < accepted.length ? looked_at : 0;
      looked_at = from + LOOKED_AT_MOST;
      // Those that nodes work on each time: a node must not work on for what has ended elsewhere.
      return reservations.learn([...new Set([...held.jobs.keys(), ...accepted.slice(from, looked_at)])]);
    },
    ready: (lane, order_key, priority) => ready.found(lane, order_key, priority),
    wake: () => claims.wake(),
    spared: async () => [...transitions.jobs(), ...(await returns.spared())],
    shared: deps.shared !== null,
    spareEndsIn: () => returns.spareEndsIn(),
    sweepNodes: () => returns.sweep(),
  });
  deps.shared?.hints.on('lanes', ({ lanes }) => {
    for (const { lane, order_key, priority } of lanes) ready.found(lane, order_key, priority);
    claims.wake();
  });
  deps.shared?.hints.on('jobs', ({ moved, ended: over }) => {
    for (const job of moved) local.moved(job);
    void reservations
      .learn(over.filter((job) => reservations.holds(job) || held.jobs.has(job)))
      .catch(() => upkeep.doubt());
  });
  // What the process before this one had given away, to nodes that do not come back with it.
  upkeep.lookAtNodesIn(deps.predecessor_renews_ms + deps.lease_ttl_ms);
  dispatcher.stores = {
    takeBefore: (node, order_key) => claims.takeBefore(node, order_key),
    headOf: (model) => ready.headOf(model),
    orphan(attempt, lease_left_ms) {
      held.orphan(attempt);
      upkeep.lookAtNodesIn(lease_left_ms);
    },
    holdBack(now_held) {
      held_back = now_held;
      if (!now_held) upkeep.lookAtNodesIn(0);
    },
    wake: () => claims.wake(),
    ask: (node, link, items) => returns.ask(node, link, items),
    handsIn({ job, number }) {
      returns.handsIn(job.id, number);
      // From then on its deadline counts again.
      upkeep.wakeIn(deps.lease_ttl_ms);
    },
    told: (word) => reservations.told(word),
  };
  return {
    accept,
    async replayed({ principal, idempotency }) {
      if (idempotency === null) return null;
      // What came just before, in the same batch perhaps, may be on its way into the store.
      await acceptances.written();
      return replays.add({ key: principal.key.id, idempotency }, clock.now_ms() + ACCEPT_WITHIN_MS);
    },
    cancel,
    watchers,
    waiting: () => transitions.waiting + acceptances.waiting + reservations.waiting,
    async close(latest_ms) {
      watchers.close();
      others?.close();
      await upkeep.close();
      await claims.close();
      held.leaveProviders();
      await Promise.all([acceptances, replays, transitions].map((rows) => rows.close(latest_ms)));
      await reservations.close(latest_ms);
    },
  };

  function ended(usage: UsageRecord): void {
    if (!reservations.settle(usage)) return;
    others?.ended(usage.job);
    metrics.detachedEnded(usage.outcome);
    if (deps.traces.wanted) void traceEnd(deps, usage);
  }

  async function cancel(id: string, message: string): Promise<Cancellation> {
    try {
      const cancellation = await store.cancelJob(id, message);
      if ('cancelled' in cancellation) held.stop(cancellation.cancelled.usage);
      else await reservations.learn([id]);
      return cancellation;
    } catch (error) {
      upkeep.doubt();
      throw error;
    }
  }

  function woken(in_ms: number): void {
    if (in_ms > 0) upkeep.wakeIn(in_ms);
    else claims.wake();
  }

  async function accept(submission: Submission, admission: Admission): Promise<Acceptance> {
    const { model, operation, priority } = submission;
    const { key } = submission.principal;
    const now = clock.wall_ms();
    const lane = laneText({ model, operation, labels: key.node_labels, pin: null, avoid: [] });
    const order_key = orderKey(dispatcher.share, key.id, priority, now, dispatcher.headOf(model));
    const job: DetachedJob = {
      id: makeId('job', now, random.bytes(10)),
      kind: 'inference',
      replica,
      key: key.id,
      model,
      operation,
      lane,
      order_key,
      on_node_loss: 'requeue',
      // Each target of a route may fail it once before the last one begins to use up its attempts.
      max_attempts: MAX_ATTEMPTS + Math.max(0, dispatcher.deps.places.tiers(model).length - 1),
      request_id: submission.request_id,
      traceparent: submission.traceparent,
      request: submission.request,
      priority,
      metadata: submission.metadata,
      queue_timeout_ms: submission.queue_timeout_ms,
      run_timeout_ms: submission.run_timeout_ms,
      retention_ms: submission.retention_ms,
      idempotency: submission.idempotency,
      reserved_tokens: admission.reserved,
      created_at: now,
    };
    const acceptance = await commit(job).catch((error: unknown) => {
      refund(dispatcher.share, key.id);
      throw error;
    });
    if ('accepted' in acceptance) {
      metrics.detachedAccepted();
      reservations.hold(job.id, admission);
      ready.note(lane, order_key, priority);
      claims.wake();
      upkeep.wakeIn(job.queue_timeout_ms);
    } else refund(dispatcher.share, key.id);
    return acceptance;
  }

  async function commit(job: DetachedJob): Promise<Acceptance> {
    try {
      return await acceptances.add(job, clock.now_ms() + ACCEPT_WITHIN_MS);
    } catch (error) {
      if (error instanceof FlotillaError && error.code === 'unavailable') {
        const message = `${error.message} Whether the job was accepted is open: send it again with the same Idempotency-Key.`;
        throw new FlotillaError('unavailable', message, { retry_after_ms: RETRY_MS });
      }
      throw error;
    }
  }
}
