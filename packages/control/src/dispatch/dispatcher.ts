import {
  type Clock,
  type JobEvent,
  type JobPolicy,
  type JobRecord,
  type Lanes,
  type Log,
  type Random,
  type ResultOutcome,
  isOpen,
  newFairShare,
  newJob,
  orderKey,
  refund,
  refusal,
  release,
  reserve,
  retryDelay,
  stepJob,
} from '@flotilla/core';
import { FlotillaError, type TerminalJobState } from '@flotilla/protocol';
import type { Link } from '../fleet/link.ts';
import { type FleetNode, type ModelSpot, dropAttempt, holdAttempt } from '../fleet/node.ts';
import type { Roster } from '../fleet/roster.ts';
import type { ActiveJob, JobRequest, JobSink } from './active-job.ts';
import { type Attempt, type AttemptResult, fenceOf, newAttempt } from './attempt.ts';
import { jobRecord } from './job-record.ts';
import { newServiceRate } from './service-rate.ts';
import { createWaitingRoom } from './waiting-room.ts';

/**
 * The scheduler of attached work on this replica: jobs wait in lanes, get a slot, are offered, and end exactly once.
 * Every decision is `stepJob`'s or `place`'s of core; this file carries out their effects.
 *
 * States of a job: see core/job.ts. Moved here by the gateway (submit, cancel, handed), by node messages (results.ts),
 * by the roster (capacity, loss: `pump`, `lose`) and by timers (offer unanswered, back-off, deadlines).
 * On a crash of the process all of it is gone with the clients' connections; rows of jobs that were open for a second
 * are ended by whoever starts next.
 */
export interface DispatcherDeps {
  clock: Clock;
  random: Random;
  log: Log;
  replica: string;
  roster: Roster;
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

/** An offer that is not answered for this long, beyond what the link's own delay explains, is withdrawn. */
const OFFER_ANSWER_MS = 1000;
/** An attached job that is open for this long gets a row. */
const RECORD_AFTER_MS = 1000;
const MAX_ATTEMPTS = 3;
const NO_CAPACITY_RETRY_MS = 5000;
/** Of what a node has failed, this much later half is forgotten. */
const FAILURE_HALF_LIFE_MS = 60_000;

export interface Dispatcher {
  readonly jobs: Map<string, ActiveJob>;
  readonly lanes: Lanes<ActiveJob>;
  readonly deps: DispatcherDeps;
  /** @throws FlotillaError `model_not_found`, `no_capacity`, `queue_full` */
  submit(request: JobRequest, sink: JobSink): ActiveJob;
  cancel(job: ActiveJob, message: string, code?: 'cancelled' | 'unavailable'): void;
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
  const { clock, random, settings, roster } = deps;
  const jobs = new Map<string, ActiveJob>();
  const room = createWaitingRoom(roster, random, settings.queue_bound);
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

  const dispatcher: Dispatcher = {
    jobs,
    lanes: room.lanes,
    deps,
    submit,
    cancel: (job, message, code = 'cancelled') => void step(job, { type: 'cancel', message, code }),
    handed(job) {
      if (job.current !== null) step(job, { type: 'handed', fence: fenceOf(job.current) });
    },
    credit,
    feed: (attempt, event, result) => step(attempt.job, event, result),
    settleSlot,
    settleUnknown(node, job, attempt) {
      if (release(node.ledger, job, attempt) !== undefined) pump(node);
    },
    pump,
    recheck,
  };
  return dispatcher;

  function submit(request: JobRequest, sink: JobSink): ActiveJob {
    const now_ms = clock.now_ms();
    if (roster.spots(request.model).length === 0) throw modelNotFound(request.model);
    const job = newActiveJob(request, sink, now_ms);
    const placement = room.place(job);
    if (placement.kind === 'nobody') {
      refund(share, request.key);
      throw nobody(request.model, placement.refusals);
    }
    jobs.set(job.id, job);
    if (placement.kind === 'placed') {
      refund(share, request.key);
      offer(job, placement.spot as ModelSpot);
    } else if (!room.enter(job, false)) {
      jobs.delete(job.id);
      refund(share, request.key);
      throw queueFull(request.model);
    }
    armDeadline(job);
    job.record_timer = clock.after(RECORD_AFTER_MS, () => record(job));
    return job;
  }

  function newActiveJob(request: JobRequest, sink: JobSink, now_ms: number): ActiveJob {
    const { model, operation, labels } = request;
    return {
      id: request.id,
      capability: model,
      lane: laneKey(request, []),
      order_key: orderKey(share, request.key, request.priority, clock.wall_ms()),
      request,
      sink,
      kernel: newJob(policy, now_ms),
      placement: { model, operation, labels, pin: null, avoid: new Set(), affinity: request.affinity },
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

  /** Feeds the rules and carries out what they say. */
  function step(
    job: ActiveJob,
    event: JobEvent,
    result: AttemptResult | null = null,
  ): ResultOutcome | undefined {
    const before = job.kernel;
    const { job: kernel, effects } = stepJob(before, event, clock.now_ms());
    job.kernel = kernel;
    let outcome: ResultOutcome | undefined;
    for (const effect of effects) {
      switch (effect.type) {
        case 'answer':
          outcome = effect.outcome;
          break;
        case 'tell':
          tell(job, effect.message, effect.reason);
          break;
        case 'attempt_ended':
          closeAttempt(job, effect.outcome, effect.message);
          break;
        case 'enqueue':
          requeue(job);
          break;
        case 'finished':
          finish(job, effect.state, effect.code, effect.message, result);
          break;
      }
    }
    if (kernel.state === 'running' && before.state !== 'running') armDeadline(job);
    return outcome;
  }

  function offer(job: ActiveJob, spot: ModelSpot): void {
    const { node } = spot;
    const now_ms = clock.now_ms();
    step(job, { type: 'offer', node: node.id, epoch: node.epoch });
    const number = job.kernel.attempt;
    reserve(node.ledger, spot.slots.id, job.id, number);
    job.offered_ms ??= now_ms;
    const attempt = newAttempt(job, number, spot, clock.wall_ms());
    job.current = attempt;
    holdAttempt(node, attempt);
    const link = node.link!;
    awaitAnswer(attempt, link);
    link.offer(attempt, {
      run_ms: settings.run_timeout_ms,
      first_byte_ms: settings.first_byte_timeout_ms,
      idle_ms: settings.idle_timeout_ms,
    });
  }

  /** A node that is silent for as long as an answer takes has not got the offer; one that is busy sending has. */
  function awaitAnswer(attempt: Attempt, link: Link): void {
    const { heard } = link;
    const decide = () => {
      if (link.heard !== heard) awaitAnswer(attempt, link);
      else step(attempt.job, { type: 'withdraw', fence: fenceOf(attempt) });
    };
    // A replica that stood still finds its timers due before it has read a socket, so that comes first.
    attempt.answer_timer = clock.after(OFFER_ANSWER_MS + 2 * link.rtt_ms, () => {
      attempt.answer_timer = clock.after(0, decide);
    });
  }

  function closeAttempt(job: ActiveJob, outcome: string, message: string | null): void {
    const attempt = job.current!;
    job.current = null;
    job.last = attempt;
    attempt.phase = 'over';
    attempt.answer_timer?.cancel();
    attempt.story.outcome = outcome;
    attempt.story.code = outcome === 'succeeded' ? null : outcome;
    attempt.story.message = message;
    attempt.story.ended_at = clock.wall_ms();
    job.stories.push(attempt.story);
    deps.metrics.attemptEnded(outcome);
    const { node } = attempt;
    if (outcome === 'succeeded') node.failures /= 2;
    else if (outcome !== 'cancelled') {
      const age_ms = clock.now_ms() - node.failures_at_ms;
      node.failures = node.failures * 2 ** (-age_ms / FAILURE_HALF_LIFE_MS) + 1;
      node.failures_at_ms = clock.now_ms();
      avoid(job, node.id);
    }
  }

  /** Once a node has failed a job, its lane is that of jobs which that node has failed. */
  function avoid(job: ActiveJob, node: string): void {
    const avoided = new Set(job.placement.avoid).add(node);
    job.placement = { ...job.placement, avoid: avoided };
    job.lane = laneKey(job.request, [...avoided].sort());
  }

  function requeue(job: ActiveJob): void {
    job.sink.discard();
    backOffThenEnqueue(job);
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
    if (placement.kind === 'placed') return offer(job, placement.spot as ModelSpot);
    if (placement.kind === 'nobody') return failNobody(job);
    room.enter(job, true);
  }

  function tell(job: ActiveJob, message: 'cancel' | 'abandon', reason: string): void {
    const attempt = job.current!;
    const fence = { job: job.id, attempt: attempt.number };
    attempt.node.link?.send(
      message === 'cancel' ? { type: 'job.cancel', ...fence } : { type: 'job.abandon', ...fence, reason },
    );
  }

  function finish(
    job: ActiveJob,
    state: TerminalJobState,
    code: FlotillaError['code'] | null,
    message: string | null,
    result: AttemptResult | null,
  ): void {
    room.leave(job);
    job.deadline_timer?.cancel();
    job.record_timer?.cancel();
    job.retry_timer?.cancel();
    jobs.delete(job.id);
    if (job.offered_ms !== null) {
      deps.metrics.queueWaited(job.request.model, job.offered_ms - job.created_ms);
      if (state === 'succeeded') rate.held(job.request.model, clock.now_ms() - job.offered_ms);
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

  function credit(attempt: Attempt, offset: number): void {
    if (attempt.phase === 'over' || offset <= attempt.credited) return;
    attempt.credited = offset;
    if (attempt.stream !== 0) attempt.node.link?.credit(attempt.stream, offset);
  }

  function settleSlot(attempt: Attempt): void {
    const { node, job } = attempt;
    if (!dropAttempt(node, attempt)) return;
    // Nobody holds it any more: it must not stay the attempt that counts.
    if (job.current === attempt) step(job, { type: 'node_lost', fence: fenceOf(attempt), retry_delay_ms: 0 });
    node.link?.closeStream(attempt);
    if (release(node.ledger, attempt.job.id, attempt.number) !== undefined) pump(node);
  }

  function pump(node: FleetNode): void {
    for (let next = room.takeFor(node); next !== null; next = room.takeFor(node)) offer(next.job, next.spot);
  }

  /** However many nodes changed in one turn of the event loop, those who wait are looked at once. */
  function recheck(): void {
    if (rechecking || room.lanes.count === 0) return;
    rechecking = true;
    clock.after(0, () => {
      rechecking = false;
      for (let next = room.takeAny(); next !== null; next = room.takeAny()) offer(next.job, next.spot);
      for (const job of room.hopeless()) failNobody(job);
    });
  }

  function failNobody(job: ActiveJob): void {
    step(job, { type: 'no_capacity', message: `No node can serve ${job.request.model} now.` });
  }

  function armDeadline(job: ActiveJob): void {
    job.deadline_timer?.cancel();
    const { deadline_ms } = job.kernel;
    if (deadline_ms === null || !isOpen(job.kernel)) return;
    job.deadline_timer = clock.after(Math.max(0, deadline_ms - clock.now_ms()), () => {
      step(job, { type: 'deadline' });
      if (isOpen(job.kernel)) armDeadline(job);
    });
  }

  function record(job: ActiveJob): void {
    job.recorded = true;
    deps.record(jobRecord(job, deps.replica, job.kernel.state));
  }

  function queueFull(model: string): FlotillaError {
    const slots = roster.spots(model).reduce((sum, spot) => sum + spot.slots.capacity, 0);
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
  const { roster, random } = dispatcher.deps;
  const { job, node } = attempt;
  const elsewhere = roster.spots(job.request.model).some((spot) => {
    if (spot.node === node || job.placement.avoid.has(spot.node.id)) return false;
    const refused = refusal(job.placement, spot);
    return refused === null || refused === 'full';
  });
  return elsewhere ? 0 : retryDelay(job.stories.length + 1, random.next(), asked_ms);
}

function laneKey(request: JobRequest, avoided: string[]): string {
  const labels = Object.keys(request.labels).sort();
  if (labels.length === 0 && avoided.length === 0) return request.operation;
  return JSON.stringify([request.operation, labels.map((name) => [name, request.labels[name]]), avoided]);
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

function nobody(model: string, refusals: string[]): FlotillaError {
  return new FlotillaError(
    'no_capacity',
    `No node can serve ${JSON.stringify(model)} now (${refusals.join(', ')}).`,
    {
      retry_after_ms: NO_CAPACITY_RETRY_MS,
      more: { reasons: refusals },
    },
  );
}
