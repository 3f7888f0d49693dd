import {
  ChurnMap,
  type Clock,
  type FairShare,
  REFUSAL_TEXT,
  type JobEvent,
  type JobPolicy,
  type JobRecord,
  type Lanes,
  type Log,
  type Random,
  type Refusal,
  type ResultOutcome,
  type UsageWord,
  type Waiting,
  isOpen,
  heldSlot,
  newFairShare,
  newJob,
  orderKey,
  refund,
  retryDelay,
  servedElsewhereInOrder,
} from '@flotilla/core';
import { FlotillaError, type InventoryItem } from '@flotilla/protocol';
import type { Link } from '../fleet/link.ts';
import type { FleetNode, ModelSpot } from '../fleet/node.ts';
import type { ActiveJob, JobOwner, JobRequest, JobSink } from './active-job.ts';
import { type Attempt, type AttemptResult, fenceOf } from './attempt.ts';
import { type Grants, type RuledEnd, createGrants } from './grants.ts';
import { jobRecord } from './job-record.ts';
import type { Places } from './places.ts';
import { newServiceRate } from './service-rate.ts';
import { createWaitingRoom, goesBefore } from './waiting-room.ts';

/**
 * The scheduler of attached work on this replica: jobs wait in lanes, get a slot, are offered, and end exactly once.
 * Every decision is `stepJob`'s or `place`'s of core; grants.ts carries out what concerns the node, this file owns the
 * jobs: where they wait, when they are given away, how their ends reach the client.
 *
 * States of a job: see core/job.ts. Moved here by the gateway (submit, cancel, handed), by what nodes say
 * (node-messages.ts), by their comings and goings (fleet/connection.ts: `pump`, `recheck`, losses) and by timers (offer unanswered, back-off, deadlines).
 * On a crash of the process all of it is gone with the clients' connections; rows of jobs that were open for a second
 * are ended by whoever starts next.
 */
export interface DispatcherDeps {
  clock: Clock;
  random: Random;
  log: Log;
  replica: string;
  places: Places;
  settings: DispatchSettings;
  metrics: DispatchMetrics;
  /** A job has been open for a second: its row is due. */
  record(job: JobRecord): void;
}

interface DispatchSettings {
  queue_timeout_ms: number;
  run_timeout_ms: number;
  first_byte_timeout_ms: number;
  idle_timeout_ms: number;
  queue_bound: number;
}

interface DispatchMetrics {
  attemptEnded(outcome: string): void;
  queueWaited(model: string, ms: number): void;
}

/** An attached job that is open for this long gets a row. */
const RECORD_AFTER_MS = 1000;
const MAX_ATTEMPTS = 3;
const NO_CAPACITY_RETRY_MS = 5000;

/** Detached work, as far as it competes with attached work for slots or comes back with a node. */
interface StoresWork {
  /** A slot of the node goes to detached work if that comes before this order key; null: nobody else wants it. */
  takeBefore(node: FleetNode, order_key: number | null): boolean;
  /** Where its line for the model stands (`orderKey`); undefined: nothing waits, as far as is known. */
  headOf(model: string): number | undefined;
  /** The process that has the attempt is not linked any more, and may work on it for so long. */
  orphan(attempt: Attempt, lease_left_ms: number): void;
  /** Nothing is to be given away that a silent node holds; or it may be again. */
  holdBack(held: boolean): void;
  /** Places may be free. */
  wake(): void;
  /** The node came back with these, which are the store's and not known here. */
  ask(node: FleetNode, link: Link, items: readonly InventoryItem[]): void;
  /** The node came back with the attempt's result, which follows. */
  handsIn(attempt: Attempt): void;
  /** What a node says of an attempt that is not known here. */
  told(word: UsageWord): void;
}

/** Attached work of other replicas, which competes for slots of nodes linked here; and ours, for slots of nodes there. */
export interface OthersWork {
  /** There may be others. */
  readonly present: boolean;
  /** What another replica would give a free slot of this node; null: nothing. */
  headFor(node: FleetNode): Waiting | null;
  /** Asks for that, with the slot kept for it. */
  take(node: FleetNode): void;
  headOf(model: string): number | undefined;
  /** Takes what nodes that became free, or came, can serve now. */
  wake(): void;
  /** A job of ours waits in the room, or does not wait there any more. */
  waits(job: ActiveJob): void;
  left(job: ActiveJob): void;
  /** The node is linked to another replica now: what it does for clients of others is not ours to pass on. */
  letGo(node: FleetNode): void;
  /** The node came back with these, whose clients are at other replicas. */
  ask(node: FleetNode, link: Link, items: readonly InventoryItem[]): void;
}

const NO_OTHERS: OthersWork = {
  present: false,
  headFor: () => null,
  take() {},
  headOf: () => undefined,
  wake() {},
  waits() {},
  left() {},
  letGo() {},
  ask() {},
};

const NO_STORES_WORK: StoresWork = {
  takeBefore: () => false,
  headOf: () => undefined,
  orphan() {},
  holdBack() {},
  wake() {},
  ask() {},
  handsIn() {},
  told() {},
};

export interface Dispatcher {
  readonly grants: Grants;
  /** Attached and detached jobs stand in one line. */
  readonly share: FairShare;
  /** Where the line for the model stands, of attached and detached work. */
  headOf(model: string): number | undefined;
  stores: StoresWork;
  others: OthersWork;
  readonly jobs: ChurnMap<string, ActiveJob>;
  readonly lanes: Lanes<ActiveJob>;
  readonly deps: DispatcherDeps;
  /** @throws FlotillaError `model_not_found`, `no_capacity`, `queue_full` */
  submit(request: JobRequest, sink: JobSink): ActiveJob;
  cancel(job: ActiveJob, message: string, code?: 'cancelled' | 'unavailable'): void;
  /** A job that waits here goes to this spot, by this way. False: it does not wait any more. */
  give(job: string, spot: ModelSpot, link: Link): boolean;
  /** The client has a byte of the current attempt. */
  handed(job: ActiveJob): void;
  /** The client's socket has taken the body up to here: the node may forget it and send on. */
  credit(attempt: Attempt, offset: number): void;
  /** Feeds an event about an attempt to its job. @returns the answer to a result, if the event was one */
  feed(attempt: Attempt, event: JobEvent, result?: AttemptResult): ResultOutcome | undefined;
  /** The node has let go of the attempt: its slot is free, and goes to who waits. */
  settleSlot(attempt: Attempt): void;
  /** A slot that no attempt known here holds (the node came back with it) is free. */
  settleUnknown(node: FleetNode, job: string, attempt: number): void;
  /** Slots may have become free on this node. */
  pump(node: FleetNode): void;
  /** Some capability may be gone: who waits for nothing is told so. */
  recheck(): void;
}

export function createDispatcher(deps: DispatcherDeps): Dispatcher {
  const { clock, random, settings, places } = deps;
  const jobs = new ChurnMap<string, ActiveJob>();
  const room = createWaitingRoom<ActiveJob>(places, random, settings.queue_bound);
  const share = newFairShare();
  const rate = newServiceRate();
  let rechecking = false;
  const policy: JobPolicy = {
    attached: true,
    on_node_loss: 'requeue',
    max_attempts: MAX_ATTEMPTS,
    queue_timeout_ms: settings.queue_timeout_ms,
    run_timeout_ms: settings.run_timeout_ms,
  };

  const grants = createGrants({ clock, settings, metrics: deps.metrics, freed: pump });
  const attached: JobOwner = {
    requeue(job) {
      job.sink.discard();
      backOffThenEnqueue(job);
    },
    finish,
    deadlineMoved: armDeadline,
    failedBy: avoid,
    // What the client has got tells what it costs, and that was settled when it left.
    told() {},
    acknowledge(attempt, outcome) {
      const { link, job, number } = attempt;
      link?.send({ type: 'result.ack', job: job.id, attempt: number, outcome });
    },
  };

  const dispatcher: Dispatcher = {
    grants,
    share,
    headOf,
    stores: NO_STORES_WORK,
    others: NO_OTHERS,
    jobs,
    lanes: room.lanes,
    deps,
    submit,
    give(id, spot, link) {
      const job = jobs.get(id);
      if (job === undefined || !job.queued) return false;
      leaveRoom(job);
      grants.offer(job, spot, link);
      return true;
    },
    cancel: (job, message, code = 'cancelled') => void grants.step(job, { type: 'cancel', message, code }),
    handed(job) {
      if (job.current !== null) grants.step(job, { type: 'handed', fence: fenceOf(job.current) });
    },
    credit: (attempt, offset) => grants.credit(attempt, offset),
    feed: (attempt, event, result) => grants.step(attempt.job, event, result),
    settleSlot: (attempt) => grants.settleSlot(attempt),
    settleUnknown: (node, job, attempt) => grants.settleUnknown(node, job, attempt),
    pump,
    recheck,
  };
  return dispatcher;

  function submit(request: JobRequest, sink: JobSink): ActiveJob {
    const now_ms = clock.now_ms();
    if (!places.known(request.model)) throw modelNotFound(request.model);
    const job = newActiveJob(request, sink, now_ms);
    const placement = room.place(job);
    if (placement.kind === 'nobody') {
      refund(share, request.key);
      throw nobody(request, placement.refusals);
    }
    jobs.set(job.id, job);
    if (placement.kind === 'placed') {
      refund(share, request.key);
      grants.offer(job, placement.spot);
    } else if (!room.enter(job, false)) {
      jobs.delete(job.id);
      refund(share, request.key);
      throw queueFull(request.model);
    } else dispatcher.others.waits(job);
    armDeadline(job);
    job.record_timer = clock.after(RECORD_AFTER_MS, () => record(job));
    return job;
  }

  function newActiveJob(request: JobRequest, sink: JobSink, now_ms: number): ActiveJob {
    const { model, operation, labels } = request;
    return {
      id: request.id,
      capability: model,
      lane: laneKey(request, new Set(), new Set()),
      order_key: orderKey(share, request.key, request.priority, clock.wall_ms(), headOf(model)),
      request,
      sink,
      owner: attached,
      kernel: newJob(policyOf(model), now_ms),
      placement: {
        model,
        operation,
        labels,
        pin: null,
        avoid: new Set(),
        refused_by: new Set(),
        affinity: request.affinity,
      },
      current: null,
      last: null,
      stories: [],
      created_at: clock.wall_ms(),
      created_ms: now_ms,
      offered_ms: null,
      queued: false,
      deadline_timer: null,
      record_timer: null,
      retry_timer: null,
      recorded: false,
    };
  }

  function headOf(model: string): number | undefined {
    const { stores, others } = dispatcher;
    const heads = [room.headOf(model), stores.headOf(model), others.headOf(model)].filter(
      (head) => head !== undefined,
    );
    return heads.length === 0 ? undefined : Math.min(...heads);
  }

  /** Each target of a route may fail it once before the last one begins to use up its attempts. */
  function policyOf(model: string): JobPolicy {
    const more = places.tiers(model).length - 1;
    return more > 0 ? { ...policy, max_attempts: policy.max_attempts + more } : policy;
  }

  /** Once a node has failed a job, its lane is that of jobs which that node has failed. */
  function avoid(job: ActiveJob, node: string): void {
    const avoided = new Set(job.placement.avoid).add(node);
    job.placement = { ...job.placement, avoid: avoided };
    job.lane = laneKey(job.request, avoided, job.placement.refused_by);
  }

  /** A timer may fire a moment early, and the rules take no offer before its time. */
  function backOffThenEnqueue(job: ActiveJob): void {
    const wait_ms = job.kernel.not_before_ms - clock.now_ms();
    if (wait_ms > 0) job.retry_timer = clock.after(wait_ms, () => backOffThenEnqueue(job));
    else enqueue(job);
  }

  function enqueue(job: ActiveJob): void {
    job.retry_timer = null;
    const placement = room.place(job);
    if (placement.kind === 'placed') return grants.offer(job, placement.spot);
    if (placement.kind === 'nobody') return failNobody(job, placement.refusals);
    if (room.enter(job, true)) dispatcher.others.waits(job);
  }

  function finish(job: ActiveJob, { state, code, message, result }: RuledEnd): void {
    leaveRoom(job);
    job.deadline_timer?.timer.cancel();
    job.record_timer?.cancel();
    job.retry_timer?.cancel();
    jobs.delete(job.id);
    if (job.offered_ms !== null) {
      deps.metrics.queueWaited(job.request.model, job.offered_ms - job.created_ms);
      const held_ms = clock.now_ms() - job.offered_ms;
      heldSlot(share, job.request.key, held_ms);
      if (state === 'succeeded') rate.held(job.request.model, held_ms);
    }
    job.sink.finished({
      state,
      code,
      message,
      attempt: job.last,
      result,
      retry_after_ms: code === 'no_capacity' ? NO_CAPACITY_RETRY_MS : undefined,
    });
  }

  function pump(node: FleetNode): void {
    for (;;) {
      const next = room.firstFor(node);
      const { stores, others } = dispatcher;
      const other = others.headFor(node);
      const others_first = other !== null && (next === null || goesBefore(other, next.job));
      const first = others_first ? other : (next?.job ?? null);
      if (stores.takeBefore(node, first?.order_key ?? null)) continue;
      if (others_first) {
        others.take(node);
        continue;
      }
      if (next === null) return;
      leaveRoom(next.job);
      grants.offer(next.job, next.spot);
    }
  }

  /** However many nodes changed in one turn of the event loop, those who wait are looked at once. */
  function recheck(): void {
    dispatcher.stores.wake();
    dispatcher.others.wake();
    if (rechecking || room.lanes.count === 0) return;
    rechecking = true;
    clock.after(0, () => {
      rechecking = false;
      for (let next = room.takeAny(); next !== null; next = room.takeAny()) {
        dispatcher.others.left(next.job);
        grants.offer(next.job, next.spot);
      }
      for (const { jobs, refusals } of room.hopeless()) for (const job of jobs) failNobody(job, refusals);
    });
  }

  function leaveRoom(job: ActiveJob): void {
    if (job.queued) dispatcher.others.left(job);
    room.leave(job);
  }

  function failNobody(job: ActiveJob, refusals: Refusal[]): void {
    grants.step(job, { type: 'no_capacity', message: noCapacity(job.request.model, refusals) });
  }

  function armDeadline(job: ActiveJob): void {
    const { deadline_ms } = job.kernel;
    if (deadline_ms === null || !isOpen(job.kernel)) return;
    // With its start a job's deadline moves on, and hardly any is reached: a timer that fires early looks, and is set again.
    if (job.deadline_timer !== null && job.deadline_timer.at_ms <= deadline_ms) return;
    job.deadline_timer?.timer.cancel();
    const timer = clock.after(Math.max(0, deadline_ms - clock.now_ms()), () => {
      job.deadline_timer = null;
      grants.step(job, { type: 'deadline' });
      if (isOpen(job.kernel)) armDeadline(job);
    });
    job.deadline_timer = { timer, at_ms: deadline_ms };
  }

  function record(job: ActiveJob): void {
    job.recorded = true;
    deps.record(jobRecord(job, deps.replica, job.kernel.state));
  }

  function queueFull(model: string): FlotillaError {
    let slots = 0;
    for (const tier of places.tiers(model)) {
      for (const spot of tier.spots.all()) slots += spot.slots.capacity;
    }
    return new FlotillaError('queue_full', `${room.lanes.depth(model)} requests already wait for ${model}.`, {
      retry_after_ms: rate.retryAfter(model, room.lanes.depth(model), slots),
    });
  }
}

/**
 * The back-off before a job's next attempt: none where another node can take it, since what one backend suffers from,
 * or asks for by `Retry-After`, says nothing of the others.
 */
export function backOff(dispatcher: Dispatcher, attempt: Attempt, asked_ms?: number): number {
  const { places, random } = dispatcher.deps;
  const { job, node } = attempt;
  // In memory a detached job is one attempt: its number tells how many were before.
  const before = job.kernel.policy.attached ? job.stories.length + 1 : attempt.number;
  return servedElsewhereInOrder(job.placement, places.tiers(job.request.model), node.id)
    ? 0
    : retryDelay(before, random.next(), asked_ms);
}

/** The node can never take this job, whatever becomes free on it: said before the attempt is fed its rejection. */
export function neverOn(job: ActiveJob, node: string): void {
  job.placement = { ...job.placement, refused_by: new Set(job.placement.refused_by).add(node) };
}

function laneKey(request: JobRequest, avoided: ReadonlySet<string>, refused_by: ReadonlySet<string>): string {
  const labels = Object.keys(request.labels).sort();
  if (labels.length === 0 && avoided.size === 0) return request.operation;
  const wanted = labels.map((name) => [name, request.labels[name]]);
  return JSON.stringify([request.operation, wanted, [...avoided].sort(), [...refused_by].sort()]);
}

function modelNotFound(model: string): FlotillaError {
  return new FlotillaError(
    'model_not_found',
    `The model ${JSON.stringify(model)} does not exist, or this key may not use it.`,
    {
      param: 'model',
    },
  );
}

function nobody({ model, operation }: JobRequest, refusals: Refusal[]): FlotillaError {
  // No node that comes back, or becomes free, changes this: who tries again is told the same.
  if (refusals.length > 0 && refusals.every((reason) => reason === 'operation')) {
    return new FlotillaError(
      'invalid_request',
      `The model ${JSON.stringify(model)} does not do ${operation}.`,
      {
        param: 'model',
      },
    );
  }
  return new FlotillaError('no_capacity', noCapacity(model, refusals), {
    retry_after_ms: NO_CAPACITY_RETRY_MS,
    more: { reasons: refusals },
  });
}

function noCapacity(model: string, refusals: Refusal[]): string {
  const reasons = refusals.map((code) => REFUSAL_TEXT[code]).join('; ');
  if (refusals.length < 2) return `No node can serve ${model} now${reasons === '' ? '' : `: ${reasons}`}.`;
  // Which of them it is that a reason holds for is not a client's to know.
  return `No node can serve ${model} now. Of those that have it, each is kept from it by one or more of these: ${reasons}.`;
}
