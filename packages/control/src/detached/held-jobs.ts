import {
  ChurnMap,
  type ClaimedJob,
  type Clock,
  type FairShare,
  type Finish,
  type JobFence,
  type KeptJob,
  type Log,
  type ResultOutcome,
  type UsageRecord,
  type UsageWord,
  estimateUsage,
  grantedJob,
  heldSlot,
  newJob,
} from '@flotilla/core';
import {
  ERRORS,
  type InventoryItem,
  type Operation,
  STORE_OWNER,
  type TokenUsage,
  type Verdict,
} from '@flotilla/protocol';
import type { BodyMemory } from '../body-memory.ts';
import type { ActiveJob, JobOwner } from '../dispatch/active-job.ts';
import { type Attempt, fenceOf } from '../dispatch/attempt.ts';
import type { Grants, RuledEnd } from '../dispatch/grants.ts';
import type { Places } from '../dispatch/places.ts';
import type { Link } from '../fleet/link.ts';
import { type FleetNode, type ModelSpot, UNSETTLED_MOST } from '../fleet/node.ts';
import { Collector, collectorOf } from './collector.ts';
import { laneAfter, readLane } from './lane.ts';
import type { ReadyLanes } from './ready-lanes.ts';
import type { Transitions } from './transitions.ts';
import type { Watchers } from './watchers.ts';

/**
 * Detached jobs that a node linked to this replica holds: in memory from the claim, or from a node's return with them,
 * to the end of that one attempt. Their truth is the store's row; what the rules say here becomes a transition there,
 * and a node's result is answered only when that is committed, with the store's own verdict.
 *
 *     claimed ──offer──▶ held ──result, release, loss──▶ committing ──store's verdict──▶ answered, gone from here
 *     (node is back) ─keep─▲ └──the store ended it (cancel, deadline)──▶ the node is told to stop ──▶ gone
 *
 * The store's fence has the epoch of the claim (or of the keep), whatever connection the attempt is on by now: the
 * store hears of a new one only where another process needs to know it.
 */
export interface HeldJobsDeps {
  clock: Clock;
  log: Log;
  grants: Grants;
  places: Pick<Places, 'servedBy'>;
  transitions: Transitions;
  watchers: Pick<Watchers, 'moved'>;
  ready: ReadyLanes;
  share: FairShare;
  memory: BodyMemory;
  settings: { run_timeout_ms: number; result_limit_bytes: number };
  /** Work is ready; or something is due in so many milliseconds. */
  woken(in_ms: number): void;
  /** A job has ended, with this row. */
  ended(usage: UsageRecord): void;
  /** What a node says of an attempt whose job may have ended without it. */
  told(word: UsageWord): void;
  /**
   * A job may have ended without this process having heard its row.
   * @param ours it has, by this process's word
   */
  unheard(job: string, ours: boolean): void;
}

export interface HeldJobs {
  readonly jobs: Pick<ChurnMap<string, ActiveJob>, 'get' | 'has' | 'keys'>;
  /** Offers a claimed job to the spot whose slot it was claimed for. */
  offer(claimed: ClaimedJob, spot: ModelSpot): void;
  /** Takes up an attempt that the node came back with, and that the store says is its own. */
  keep(kept: KeptJob, node: FleetNode, link: Link, item: InventoryItem): Verdict;
  /** Nobody holds this attempt any more (or ever did, `started` null): the job goes back, or ends if it may not. */
  lose(
    fence: JobFence,
    of: {
      lane: string;
      order_key: number;
      priority: number;
      started: boolean | null;
      failures: number;
      max_attempts: number;
      message?: string;
    },
  ): Promise<void>;
  /** The link to the process that has it is gone: its row tells of it, until its lease is over. */
  orphan(attempt: Attempt): void;
  /** The store has ended the job, with this row: whoever works on it is told to stop. */
  stop(usage: UsageRecord): void;
  /** This process ends, and with it what it asks providers: those jobs go back. What nodes have stays theirs. */
  leaveProviders(): void;
}

const LOST = 'The node was lost.';

export function createHeldJobs(deps: HeldJobsDeps): HeldJobs {
  const { clock, grants, transitions, watchers, log } = deps;
  const jobs = new ChurnMap<string, ActiveJob>();
  /** Ended by the store: their rules have nothing to say to it. */
  const moot = new WeakSet<ActiveJob>();
  return {
    jobs,
    offer,
    keep,
    lose,
    leaveProviders() {
      for (const { current } of [...jobs.values()]) if (current?.node.is_provider === true) leave(current);
    },
    orphan: ({ job }) => drop(job, 'Its node was revoked, or is another process now.'),
    stop,
  };

  /** A stop that was asked for says nothing of the provider, and uses up none of the job's attempts. */
  function leave({ job, number, node, story }: Attempt): void {
    const message = 'The control plane that asked it was stopped.';
    drop(job, message);
    const { lane, order_key } = job;
    const { priority } = job.request;
    const { failures, policy } = job.kernel;
    const fence = { id: job.id, attempt: number, node: node.id, epoch: story.epoch };
    lose(fence, {
      lane,
      order_key,
      priority,
      started: null,
      failures,
      max_attempts: policy.max_attempts,
      message,
    }).catch((error: unknown) =>
      log.debug({ error }, 'A job at a provider was not given back; it will be found.'),
    );
  }

  function offer(claimed: ClaimedJob, spot: ModelSpot): void {
    const now_ms = clock.now_ms();
    const kernel = newJob(policyOf(claimed), now_ms);
    const job = activeJob(claimed, { ...kernel, attempt: claimed.attempt - 1, failures: claimed.failures });
    jobs.set(job.id, job);
    watchers.moved(job.id);
    grants.offer(job, spot);
  }

  function keep(kept: KeptJob, node: FleetNode, link: Link, item: InventoryItem): Verdict {
    const fence = { job: kept.id, attempt: kept.attempt };
    const before = jobs.get(kept.id);
    if (before !== undefined) {
      moot.add(before);
      forget(before);
    }
    const running = kept.state === 'running' || item.state === 'running' || item.state === 'finished';
    const kernel = grantedJob(policyOf(kept), { ...kept, running }, clock.now_ms());
    const job = activeJob(kept, kernel);
    const attempt = grants.adopt(job, spotOf(deps.places, node, kept, item));
    jobs.set(job.id, job);
    if (kept.state !== 'running' && running) started(job, kept);
    attempt.link = link;
    const stream = link.resume(attempt, item);
    // Never: its request is sent from the start, or is not asked for. The node lets go and says so.
    if (stream === undefined) return { ...fence, verdict: 'abandon' };
    return { ...fence, verdict: 'keep', stream, acked_offset: 0, head_received: false };
  }

  function activeJob(claimed: ClaimedJob, kernel: ActiveJob['kernel']): ActiveJob {
    const lane = readLane(claimed.lane);
    const operation = claimed.operation as Operation;
    const labels = lane?.labels ?? {};
    const body = Buffer.from(claimed.request ?? '');
    const job: ActiveJob = {
      id: claimed.id,
      capability: claimed.model,
      lane: claimed.lane,
      order_key: claimed.order_key,
      request: {
        id: claimed.id,
        request_id: claimed.request_id,
        owner: STORE_OWNER,
        key: claimed.key ?? '',
        model: claimed.model,
        operation,
        body,
        streaming: false,
        add_usage: false,
        labels,
        session: null,
        affinity: null,
        priority: claimed.priority,
        // Who submits a job is never a control plane that asks its provider.
        via: [],
        traceparent: claimed.traceparent,
      },
      sink: new Collector({
        limit_bytes: deps.settings.result_limit_bytes,
        request_bytes: body.byteLength,
        memory: deps.memory,
        started: () => started(job, claimed),
        credit: (attempt, offset) => grants.credit(attempt, offset),
        overflowed,
      }),
      owner: ownerOf(claimed),
      kernel,
      placement: {
        model: claimed.model,
        operation,
        labels,
        pin: lane?.pin ?? null,
        avoid: lane === undefined || lane.avoid.length === 0 ? NOBODY : new Set(lane.avoid),
        refused_by: NOBODY,
        affinity: null,
        fenced: true,
      },
      current: null,
      last: null,
      stories: [],
      created_at: claimed.created_at,
      created_ms: clock.now_ms(),
      offered_ms: null,
      queued: false,
      deadline_timer: null,
      record_timer: null,
      retry_timer: null,
      recorded: true,
    };
    return job;
  }

  function policyOf({
    max_attempts,
    on_node_loss,
    run_timeout_ms,
  }: ClaimedJob): ActiveJob['kernel']['policy'] {
    // Deadlines are the store's: it judges them by the clock that set them, and tells by `stop`.
    return { attached: false, on_node_loss, max_attempts, run_timeout_ms, queue_timeout_ms: Infinity };
  }

  function started(job: ActiveJob, fence: JobFence): void {
    void transitions.add({ type: 'start', row: bare(fence) }).then(
      (outcome) => {
        if (outcome === 'stale') drop(job, 'The job is not this attempt’s any more.');
        else watchers.moved(job.id);
        // Its deadline may be before any that was known of.
        if (job.kernel.policy.run_timeout_ms !== null) deps.woken(job.kernel.policy.run_timeout_ms);
      },
      (error: unknown) => log.warn({ error, job: job.id }, 'The start of a job was not recorded.'),
    );
  }

  function overflowed(attempt: Attempt): void {
    const { job, node, number } = attempt;
    const message = `The answer is larger than the ${deps.settings.result_limit_bytes} bytes that are kept of one.`;
    node.link?.send({ type: 'job.abandon', job: job.id, attempt: number, reason: message });
    grants.step(job, {
      type: 'failed',
      fence: fenceOf(attempt),
      code: 'backend_error',
      message,
      retryable: false,
      retry_delay_ms: 0,
    });
  }

  function ownerOf(claimed: ClaimedJob): JobOwner {
    const fence = bare(claimed);
    let pending: Attempt | null = null;
    const owner: JobOwner = {
      requeue(job) {
        slotHeld(job);
        if (moot.has(job)) return forget(job);
        const attempt = job.last!;
        const { failures, accepted, not_before_ms } = job.kernel;
        const delay_ms = Math.max(0, Math.round(not_before_ms - clock.now_ms()));
        commit(job, attempt, {
          type: 'requeue',
          row: {
            ...fence,
            ...storyOf(attempt),
            delay_ms,
            counts: failures > claimed.failures,
            digest: accepted?.attempt === attempt.number ? accepted.digest : null,
            lane: job.lane,
          },
        }).then(
          (outcome) => {
            // Also where it says `stale`: sent again after its answer was lost, it is ready by the first sending.
            if (delay_ms === 0) deps.ready.note(job.lane, job.order_key, job.request.priority);
            deps.woken(delay_ms);
            if (outcome !== 'accepted') notOurs(attempt);
          },
          () => undefined,
        );
      },
      finish(job, end) {
        slotHeld(job);
        if (moot.has(job)) return forget(job);
        const attempt = job.last!;
        const row = finishRow(claimed, job, end);
        commit(job, attempt, { type: 'finish', row }).then(
          (outcome) => {
            // Sent again after its answer was lost: it is this end that counts, and nobody has heard of it yet.
            const ours = outcome === 'accepted' || (outcome === 'duplicate' && !moot.has(job));
            if (ours) deps.ended(row.usage);
            else notOurs(attempt);
          },
          () => undefined,
        );
      },
      deadlineMoved() {},
      told,
      failedBy(job, node) {
        job.lane = laneAfter(job.lane, node);
      },
      acknowledge(attempt, outcome) {
        // What the rules accepted is said by the store, once it is committed.
        if (pending === attempt) attempt.unanswered = true;
        else answer(attempt, outcome);
      },
    };
    return owner;

    /** The store has ended the job, or given it away, before what the node says of it got there. */
    function notOurs(attempt: Attempt): void {
      deps.unheard(claimed.id, false);
      told(attempt);
    }

    function told(attempt: Attempt): void {
      const usage = attempt.usage ?? usageSoFar(claimed, attempt);
      if (usage === null) return;
      deps.told({ job: claimed.id, attempt: attempt.number, node: attempt.node.id, ...usage });
    }

    async function commit(
      job: ActiveJob,
      attempt: Attempt,
      transition: Parameters<Transitions['add']>[0],
    ): Promise<ResultOutcome> {
      pending = attempt;
      attempt.node.unsettled++;
      try {
        const outcome = await transitions.add(transition);
        pending = null;
        forget(job);
        watchers.moved(job.id);
        // A statement sent twice says `duplicate` to its own first time: the node needs no other word for it.
        if (attempt.unanswered) answer(attempt, outcome);
        return outcome;
      } catch (error) {
        // The node keeps its result; without one the job ends by its deadline.
        forget(job);
        log.error(
          { error, job: job.id, attempt: attempt.number },
          'What became of a job could not be recorded.',
        );
        throw error;
      } finally {
        // Exactly then may it be given work again.
        if (attempt.node.unsettled-- === UNSETTLED_MOST) deps.woken(0);
      }
    }
  }

  /** However it ended. Of what was never begun, or was begun with another process, it is not known how long it takes. */
  function slotHeld({ last, offered_ms, request }: ActiveJob): void {
    if (last === null || last.story.started_at === null || offered_ms === null) return;
    heldSlot(deps.share, request.key, clock.now_ms() - offered_ms);
  }

  function answer(attempt: Attempt, outcome: ResultOutcome): void {
    const { node, job, number } = attempt;
    node.link?.send({ type: 'result.ack', job: job.id, attempt: number, outcome });
    attempt.unanswered = false;
    grants.settleSlot(attempt);
  }

  function finishRow(claimed: ClaimedJob, job: ActiveJob, end: RuledEnd): Finish & { usage: UsageRecord } {
    const attempt = job.last!;
    const collected = collectorOf(job);
    const judged = judge(end, collected);
    return {
      ...bare(claimed),
      ...storyOf(attempt),
      state: judged.state,
      digest: job.kernel.accepted?.digest ?? `${judged.code}:${judged.message}`,
      error_code: judged.code,
      error_message: judged.message,
      result: judged.result,
      usage: usageOf(claimed, attempt, end, judged.code ?? 'succeeded'),
      provisional: end.result === null && attempt.usage === null,
    };
  }

  /** What was an answer for the node may be none for whoever asked. */
  function judge(end: RuledEnd, collected: Collector) {
    const { state, code, message, result } = end;
    if (state !== 'succeeded') return { state, code, message, result: null };
    const text = collected.text();
    if (text === undefined) {
      const why = 'The answer of the backend is no text, and only text is kept as a result.';
      return { state: 'failed' as const, code: 'backend_error' as const, message: why, result: null };
    }
    if (result !== null && result.status >= 400) {
      const why = `The backend refused the request with ${result.status}; its answer is the result.`;
      return { state: 'failed' as const, code: 'invalid_request' as const, message: why, result: text };
    }
    return { state, code, message, result: text };
  }

  function usageOf(claimed: ClaimedJob, attempt: Attempt, end: RuledEnd, outcome: string): UsageRecord {
    const { job } = attempt;
    const { request } = job;
    const now = clock.wall_ms();
    const usage = end.result?.usage ?? attempt.usage ?? usageSoFar(claimed, attempt) ?? NO_TOKENS;
    return {
      job: job.id,
      request_id: request.request_id,
      key: request.key === '' ? null : request.key,
      model: request.model,
      operation: request.operation,
      node: attempt.node.is_provider ? null : attempt.node.id,
      provider: attempt.node.is_provider ? attempt.node.id : null,
      outcome,
      status: end.result?.status ?? (end.code === null ? 200 : ERRORS[end.code].status),
      attempts: attempt.number,
      ...usage,
      queue_ms: Math.max(0, attempt.story.offered_at - job.created_at),
      first_byte_ms: null,
      total_ms: Math.max(0, now - job.created_at),
      created_at: job.created_at,
    };
  }

  async function lose(fence: JobFence, of: Parameters<HeldJobs['lose']>[1]): Promise<void> {
    const counts = of.started === true;
    const message = of.message ?? LOST;
    const story = { backend: null, outcome: 'node_lost', code: 'node_lost', message };
    if (counts && of.failures + 1 >= of.max_attempts) {
      const outcome = await transitions.add({
        type: 'finish',
        row: {
          ...bare(fence),
          ...story,
          state: 'failed',
          digest: 'attempts_exhausted',
          error_code: 'attempts_exhausted',
          error_message: LOST,
          result: null,
          usage: null,
          provisional: true,
        },
      });
      deps.unheard(fence.id, outcome === 'accepted');
    } else {
      // A claim that was never offered says nothing of the node.
      const lane = of.started === null ? of.lane : laneAfter(of.lane, fence.node);
      const row = { ...bare(fence), ...story, delay_ms: 0, counts, digest: null, lane };
      await transitions.add({ type: 'requeue', row });
      // Whatever the outcome: sent again after its answer was lost, it is ready by the first sending.
      deps.ready.note(lane, of.order_key, of.priority);
      deps.woken(0);
    }
    watchers.moved(fence.id);
  }

  function stop(usage: UsageRecord): void {
    watchers.moved(usage.job);
    deps.ended(usage);
    const job = jobs.get(usage.job);
    if (job !== undefined) drop(job, `The job has ended: ${usage.outcome}.`);
  }

  function drop(job: ActiveJob, message: string): void {
    if (moot.has(job)) return;
    // What is on its way to the store was decided before.
    if (job.current === null) return;
    moot.add(job);
    grants.step(job, { type: 'cancel', message });
    forget(job);
  }

  /** Its bodies are needed no longer. */
  function forget(job: ActiveJob): void {
    collectorOf(job).close();
    if (jobs.get(job.id) === job) jobs.delete(job.id);
  }
}

function bare({ id, attempt, node, epoch }: JobFence): JobFence {
  return { id, attempt, node, epoch };
}

function storyOf({ story }: Attempt) {
  const { backend, outcome, code, message } = story;
  return { backend, outcome, code, message };
}

/**
 * An estimate, as for attached requests: of the prompt of work that was begun, and of its answer by what has come of it.
 * But a node that tells of a failure and no count had got nothing, and that costs nothing.
 */
function usageSoFar({ request_bytes }: ClaimedJob, attempt: Attempt): TokenUsage | null {
  const { asked, received, story } = attempt;
  const stopped = story.outcome === 'cancelled' || story.outcome === 'node_lost';
  return received > 0 || (asked && stopped) ? estimateUsage(request_bytes, received) : null;
}

const NO_TOKENS: TokenUsage = { prompt_tokens: 0, completion_tokens: 0, cached_tokens: 0, estimated: true };

/** Where it runs; a backend that the node does not tell of any more is none for anything new. */
function spotOf(
  places: Pick<Places, 'servedBy'>,
  node: FleetNode,
  { model }: KeptJob,
  item: InventoryItem,
): ModelSpot {
  const known = node.spots.find(
    (spot) => spot.backend === item.backend && places.servedBy(spot).includes(model),
  );
  if (known !== undefined) return known;
  const backend = item.backend ?? 'unknown';
  const pool = node.descriptor?.backends.find(({ id }) => id === backend)?.pool ?? 'unknown';
  return {
    node,
    model,
    backend,
    operations: [],
    loaded: true,
    backend_health: 'down',
    model_health: 'down',
    slots: node.ledger.pools.get(pool) ?? NO_POOL,
  };
}

const NOBODY: ReadonlySet<string> = new Set();

const NO_POOL = {
  id: 'unknown',
  capacity: 0,
  capacity_from: 'default',
  reported: null,
  full: true,
  held: new Set<string>(),
  promised: 0,
  reserved: 0,
};
