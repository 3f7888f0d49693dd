import type { ErrorCode, JobState, TerminalJobState } from '@flotilla/protocol';

/**
 * One job, from acceptance to its one terminal state.
 *
 *     queued ──offer──▶ leased ──started──▶ running ──▶ succeeded | failed | timed_out | cancelled
 *        ▲                 │                   │
 *        └── rejected · withdrawn · node lost · retryable failure
 *
 * Moved by: the scheduler (offer), the node through its link (started, rejected, completed, failed, released), the
 * clock (withdrawn, deadline, node_lost), the client or an operator (cancel).
 *
 * The fence is `(job, attempt, node, epoch)`: whatever comes from another attempt than the current one is answered
 * `stale`, so a job has at most one accepted result. Slots are not counted here but in the ledger: an attempt that
 * was withdrawn or cancelled keeps its slot until the node has let go of it.
 *
 * For attached work this object is the truth; for detached work the store is, and these same rules are its guards.
 */
export interface Fence {
  readonly attempt: number;
  readonly node: string;
  readonly epoch: number;
}

export interface JobPolicy {
  readonly attached: boolean;
  readonly on_node_loss: 'requeue' | 'wait_for_origin' | 'fail';
  /** Attempts that started and then failed or were lost with their node. */
  readonly max_attempts: number;
  readonly queue_timeout_ms: number;
  /** Null: no limit. */
  readonly run_timeout_ms: number | null;
}

export interface JobKernel {
  readonly policy: JobPolicy;
  readonly state: JobState;
  /** The number of the last grant; 0: never offered. */
  readonly attempt: number;
  readonly current: (Fence & { readonly accepted: boolean; readonly started: boolean }) | null;
  readonly failures: number;
  /** The client has a byte of the current attempt: it cannot begin anew elsewhere. */
  readonly handed: boolean;
  /** Not offered before this time. */
  readonly not_before_ms: number;
  /** Of the queue until a node accepts it, of the run from then on. Null: none. */
  readonly deadline_ms: number | null;
  /** Until when it may wait for a slot; a slot found and lost again brings it back into force. */
  readonly queue_deadline_ms: number;
  /** It was accepted and let go unstarted once, and has waited anew for that: not a second time. */
  readonly waited_anew: boolean;
  readonly accepted: { readonly attempt: number; readonly digest: string } | null;
  readonly contact: 'ok' | 'lost';
}

export type JobEvent =
  | { type: 'offer'; node: string; epoch: number }
  | { type: 'started'; fence: Fence }
  | { type: 'rejected'; fence: Fence; reason: string; retry_delay_ms: number }
  /** The node did not answer the offer in time. */
  | { type: 'withdraw'; fence: Fence }
  | { type: 'handed'; fence: Fence }
  | { type: 'completed'; fence: Fence; digest: string }
  | {
      type: 'failed';
      fence: Fence;
      code: ErrorCode;
      message: string;
      retryable: boolean;
      retry_delay_ms: number;
    }
  /** The node has taken it, and may still be receiving the request. */
  | { type: 'accepted'; fence: Fence }
  /** The node let go of the attempt, asked to or not. */
  | { type: 'released'; fence: Fence; retry_delay_ms: number }
  /** Its lease ended, or its link was away for longer than this kind of work waits. */
  | { type: 'node_lost'; fence: Fence; retry_delay_ms: number; message?: string }
  | { type: 'contact'; fence: Fence; contact: 'ok' | 'lost' }
  /** By its client or an operator; `unavailable` when it is the control plane that stops. */
  | { type: 'cancel'; message: string; code?: 'cancelled' | 'unavailable' }
  /** Nobody can serve it and nobody who could may return. */
  | { type: 'no_capacity'; message: string }
  | { type: 'deadline' };

export type ResultOutcome = 'accepted' | 'duplicate' | 'stale' | 'conflict';

export type JobEffect =
  /** Put it (back) into its lane, at `not_before_ms` of the state. */
  | { type: 'enqueue' }
  /** An attempt is over; its story goes into the record. */
  | { type: 'attempt_ended'; attempt: number; outcome: string; message: string | null }
  /** Tell the node that it no longer holds the attempt. */
  | { type: 'tell'; message: 'cancel' | 'abandon'; fence: Fence; reason: string }
  /** The answer to a result, which ends the node's replay. */
  | { type: 'answer'; outcome: ResultOutcome }
  | { type: 'finished'; state: TerminalJobState; code: ErrorCode | null; message: string | null };

export interface JobStep {
  readonly job: JobKernel;
  readonly effects: readonly JobEffect[];
}

const NO_EFFECTS: readonly JobEffect[] = [];

export function newJob(policy: JobPolicy, now_ms: number): JobKernel {
  return {
    policy,
    state: 'queued',
    attempt: 0,
    current: null,
    failures: 0,
    handed: false,
    not_before_ms: now_ms,
    deadline_ms: now_ms + policy.queue_timeout_ms,
    queue_deadline_ms: now_ms + policy.queue_timeout_ms,
    waited_anew: false,
    accepted: null,
    contact: 'ok',
  };
}

/** A job that a node holds already, by the account of whoever owns it. */
export function grantedJob(
  policy: JobPolicy,
  granted: Fence & { readonly failures: number; readonly running: boolean },
  now_ms: number,
): JobKernel {
  const { attempt, node, epoch, failures, running } = granted;
  return {
    ...newJob(policy, now_ms),
    state: running ? 'running' : 'leased',
    attempt,
    failures,
    current: { attempt, node, epoch, accepted: true, started: running },
  };
}

export function stepJob(job: JobKernel, event: JobEvent, now_ms: number): JobStep {
  switch (event.type) {
    case 'offer':
      return offer(job, event, now_ms);
    case 'started':
      return holds(job, event.fence) && job.state === 'leased' ? started(job, now_ms) : unchanged(job);
    case 'accepted':
      return holds(job, event.fence) && job.state === 'leased' ? accepted(job, now_ms) : unchanged(job);
    case 'handed':
      return holds(job, event.fence) && !job.handed
        ? { job: { ...job, handed: true }, effects: NO_EFFECTS }
        : unchanged(job);
    case 'contact':
      return holds(job, event.fence) && job.contact !== event.contact
        ? { job: { ...job, contact: event.contact }, effects: NO_EFFECTS }
        : unchanged(job);
    case 'rejected':
      return holds(job, event.fence) && job.state === 'leased'
        ? requeue(job, 'rejected', event.reason, now_ms, event.retry_delay_ms)
        : unchanged(job);
    case 'withdraw':
      return withdraw(job, event.fence, now_ms);
    case 'completed':
      return completed(job, event.fence, event.digest);
    case 'failed':
      return failed(job, event, now_ms);
    case 'released':
      return holds(job, event.fence)
        ? lost(job, 'node_lost', 'The node let go of the attempt.', now_ms, event.retry_delay_ms, false)
        : unchanged(job);
    case 'node_lost':
      return holds(job, event.fence) ? nodeLost(job, event, now_ms) : unchanged(job);
    case 'cancel': {
      const code = event.code ?? 'cancelled';
      const state = code === 'cancelled' ? 'cancelled' : 'failed';
      return isOpen(job) ? end(job, state, code, event.message, 'cancel') : unchanged(job);
    }
    case 'no_capacity':
      return job.state === 'queued'
        ? end(job, 'failed', 'no_capacity', event.message, 'cancel')
        : unchanged(job);
    case 'deadline':
      return deadline(job, now_ms);
  }
}

/** Whether this fence is the attempt that counts now. */
export function holds(job: JobKernel, fence: Fence): boolean {
  const { current } = job;
  return (
    current !== null &&
    current.attempt === fence.attempt &&
    current.node === fence.node &&
    current.epoch === fence.epoch
  );
}

/**
 * The node came back on a new connection and keeps its attempt: from now on its new epoch is the fence's.
 * The same object if the attempt is not the current one.
 */
export function refence(job: JobKernel, attempt: number, node: string, epoch: number): JobKernel {
  const { current } = job;
  if (current === null || current.attempt !== attempt || current.node !== node) return job;
  return { ...job, current: { ...current, epoch }, contact: 'ok' };
}

export function isOpen(job: JobKernel): boolean {
  return job.state === 'queued' || job.state === 'leased' || job.state === 'running';
}

function offer(job: JobKernel, to: { node: string; epoch: number }, now_ms: number): JobStep {
  if (job.state !== 'queued' || now_ms < job.not_before_ms) return unchanged(job);
  const attempt = job.attempt + 1;
  const current = { attempt, node: to.node, epoch: to.epoch, accepted: false, started: false };
  return {
    job: { ...job, state: 'leased', attempt, current, handed: false, contact: 'ok' },
    effects: NO_EFFECTS,
  };
}

/** A slot was found, so the queue's deadline is met: a long upload of the request counts as part of the run. */
function accepted(job: JobKernel, now_ms: number): JobStep {
  const deadline_ms = runDeadline(job, now_ms);
  return {
    job: { ...job, current: { ...job.current!, accepted: true }, deadline_ms },
    effects: NO_EFFECTS,
  };
}

/** From the acceptance on, or from the start where that is the first word of the node. */
function runDeadline({ policy, current, deadline_ms }: JobKernel, now_ms: number): number | null {
  if (current!.accepted) return deadline_ms;
  return policy.run_timeout_ms === null ? null : now_ms + policy.run_timeout_ms;
}

function started(job: JobKernel, now_ms: number): JobStep {
  return {
    job: {
      ...job,
      state: 'running',
      current: { ...job.current!, started: true },
      deadline_ms: runDeadline(job, now_ms),
    },
    effects: NO_EFFECTS,
  };
}

/** Attached work goes elsewhere at once (P3 refuses the older answer); other work waits for the lease's end (P4). */
function withdraw(job: JobKernel, fence: Fence, now_ms: number): JobStep {
  if (!holds(job, fence) || job.state !== 'leased') return unchanged(job);
  const tell: JobEffect = {
    type: 'tell',
    message: 'abandon',
    fence,
    reason: 'the offer was not answered in time',
  };
  if (!job.policy.attached) return { job, effects: [tell] };
  const step = requeue(job, 'withdrawn', 'the offer was not answered in time', now_ms, 0);
  return { job: step.job, effects: [tell, ...step.effects] };
}

function completed(job: JobKernel, fence: Fence, digest: string): JobStep {
  if (!holds(job, fence)) {
    if (job.accepted?.attempt !== fence.attempt) return answer(job, 'stale');
    return answer(job, job.accepted.digest === digest ? 'duplicate' : 'conflict');
  }
  const step = end({ ...job, accepted: { attempt: fence.attempt, digest } }, 'succeeded', null, null, null);
  return { job: step.job, effects: [{ type: 'answer', outcome: 'accepted' }, ...step.effects] };
}

function failed(job: JobKernel, event: Extract<JobEvent, { type: 'failed' }>, now_ms: number): JobStep {
  const digest = `${event.code}:${event.message}`;
  if (!holds(job, event.fence)) {
    if (job.accepted?.attempt !== event.fence.attempt) return answer(job, 'stale');
    return answer(job, job.accepted.digest === digest ? 'duplicate' : 'conflict');
  }
  const accepted = { ...job, accepted: { attempt: event.fence.attempt, digest } };
  const step = event.retryable
    ? lost(accepted, event.code, event.message, now_ms, event.retry_delay_ms, true)
    : end(accepted, event.code === 'run_timeout' ? 'timed_out' : 'failed', event.code, event.message, null);
  return { job: step.job, effects: [{ type: 'answer', outcome: 'accepted' }, ...step.effects] };
}

function nodeLost(
  job: JobKernel,
  { retry_delay_ms, message = 'The node was lost.' }: Extract<JobEvent, { type: 'node_lost' }>,
  now_ms: number,
): JobStep {
  const { on_node_loss } = job.policy;
  if (on_node_loss === 'wait_for_origin') return { job: { ...job, contact: 'lost' }, effects: NO_EFFECTS };
  const fence = job.current!;
  const tell: JobEffect = { type: 'tell', message: 'abandon', fence, reason: message };
  const step =
    on_node_loss === 'fail'
      ? end(job, 'failed', 'node_lost', message, null)
      : lost(job, 'node_lost', message, now_ms, retry_delay_ms, false);
  return { job: step.job, effects: [tell, ...step.effects] };
}

/** An attempt is gone: again, unless the client has part of its answer or the attempts are used up. */
function lost(
  job: JobKernel,
  code: ErrorCode,
  message: string,
  now_ms: number,
  delay_ms: number,
  says_started: boolean,
): JobStep {
  if (job.handed) return end(job, 'failed', code, message, null);
  const failures = job.failures + (job.current!.started || says_started ? 1 : 0);
  if (failures < job.policy.max_attempts)
    return requeue({ ...job, failures }, code, message, now_ms, delay_ms);
  return end({ ...job, failures }, 'failed', 'attempts_exhausted', message, null, code);
}

function requeue(
  job: JobKernel,
  outcome: string,
  message: string,
  now_ms: number,
  delay_ms: number,
): JobStep {
  const { attempt, accepted, started } = job.current!;
  // The run's deadline went with its attempt: from now on it waits as long as a new job would. Attempts that started
  // are counted; for one that was only accepted it waits anew once, or a node that always lets go would hold it for ever.
  const anew = started || (accepted && !job.waited_anew);
  const queue_deadline_ms = anew ? now_ms + job.policy.queue_timeout_ms : job.queue_deadline_ms;
  return {
    job: {
      ...job,
      state: 'queued',
      current: null,
      not_before_ms: now_ms + delay_ms,
      deadline_ms: queue_deadline_ms,
      queue_deadline_ms,
      waited_anew: job.waited_anew || (accepted && !started),
      contact: 'ok',
    },
    effects: [{ type: 'attempt_ended', attempt, outcome, message }, { type: 'enqueue' }],
  };
}

/** The one transition that decides a timeout against a success: whichever comes first ends the job. */
function deadline(job: JobKernel, now_ms: number): JobStep {
  if (!isOpen(job) || job.deadline_ms === null || now_ms < job.deadline_ms) return unchanged(job);
  return job.state === 'running' || job.current?.accepted === true
    ? end(job, 'timed_out', 'run_timeout', 'The work ran longer than its limit.', 'cancel')
    : end(job, 'timed_out', 'queue_timeout', 'No slot became free before the queue deadline.', 'cancel');
}

function end(
  job: JobKernel,
  state: TerminalJobState,
  code: ErrorCode | null,
  message: string | null,
  tell: 'cancel' | null,
  attempt_outcome: string = code ?? 'succeeded',
): JobStep {
  const effects: JobEffect[] = [];
  const { current } = job;
  if (current !== null) {
    if (tell !== null) effects.push({ type: 'tell', message: tell, fence: current, reason: message ?? '' });
    effects.push({ type: 'attempt_ended', attempt: current.attempt, outcome: attempt_outcome, message });
  }
  effects.push({ type: 'finished', state, code, message });
  return { job: { ...job, state, current: null, deadline_ms: null }, effects };
}

function answer(job: JobKernel, outcome: ResultOutcome): JobStep {
  return { job, effects: [{ type: 'answer', outcome }] };
}

function unchanged(job: JobKernel): JobStep {
  return { job, effects: NO_EFFECTS };
}
