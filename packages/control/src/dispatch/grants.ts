import {
  type Clock,
  type JobEvent,
  type ResultOutcome,
  release,
  reserve,
  slotKey,
  stepJob,
} from '@flotilla/core';
import type { ErrorCode, TerminalJobState } from '@flotilla/protocol';
import type { Link } from '../fleet/link.ts';
import { type FleetNode, type ModelSpot, dropAttempt, forgetFailures, holdAttempt } from '../fleet/node.ts';
import type { ActiveJob } from './active-job.ts';
import { type Attempt, type AttemptResult, fenceOf, newAttempt } from './attempt.ts';

/**
 * What a job's rules say, carried out at the node that has it: the offer, the word to stop, the slot until the node
 * has let go. What becomes of the job then is its owner's (`JobOwner`): the waiting room of this replica for attached
 * work, the store for detached work. Nothing here knows which it is.
 *
 * States of an attempt: see attempt.ts.
 */
export interface GrantDeps {
  clock: Clock;
  settings: { run_timeout_ms: number; first_byte_timeout_ms: number; idle_timeout_ms: number };
  metrics: { attemptEnded(outcome: string): void };
  /** A slot of the node is free. */
  freed: (node: FleetNode) => void;
}

export interface Grants {
  /** Feeds the rules and carries out what they say. @returns the answer to a result, if the event was one */
  step(job: ActiveJob, event: JobEvent, result?: AttemptResult | null): ResultOutcome | undefined;
  /** Gives a job that waits to this spot, which has a slot free. */
  offer(job: ActiveJob, spot: ModelSpot, link?: Link): void;
  /** Takes up the attempt that a job's rules say the spot's node has. */
  adopt(job: ActiveJob, spot: ModelSpot): Attempt;
  /**
   * The node is to stop: attached work goes elsewhere at once, as its older answer is refused anyway; other work when
   * the node has let go, or its lease is over.
   */
  takeBack(attempt: Attempt, message: string): void;
  /** The node has let go of the attempt: its slot is free. */
  settleSlot(attempt: Attempt): void;
  /** A slot that no attempt known here holds is free. */
  settleUnknown(node: FleetNode, job: string, attempt: number): void;
  credit(attempt: Attempt, offset: number): void;
}

/** How a job ended, by its rules. */
export interface RuledEnd {
  state: TerminalJobState;
  code: ErrorCode | null;
  message: string | null;
  /** Of the attempt whose success was accepted. */
  result: AttemptResult | null;
}

/** An offer that is not answered for this long, beyond what the link's own delay explains, is withdrawn. */
const OFFER_ANSWER_MS = 1000;

export function createGrants({ clock, settings, metrics, freed }: GrantDeps): Grants {
  const grants: Grants = {
    step,
    offer,
    adopt,
    takeBack,
    settleSlot,
    settleUnknown(node, job, attempt) {
      if (release(node.ledger, job, attempt) !== undefined) freed(node);
    },
    credit(attempt, offset) {
      if (attempt.phase === 'over' || offset <= attempt.credited) return;
      attempt.credited = offset;
      if (attempt.stream !== 0) attempt.link?.credit(attempt.stream, offset);
    },
  };
  return grants;

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
          close(job, effect.outcome, effect.message);
          break;
        case 'enqueue':
          job.owner.requeue(job);
          break;
        case 'finished':
          job.owner.finish(job, { state: effect.state, code: effect.code, message: effect.message, result });
          break;
      }
    }
    if (kernel.deadline_ms !== before.deadline_ms) job.owner.deadlineMoved(job);
    return outcome;
  }

  function offer(job: ActiveJob, spot: ModelSpot, link = spot.node.link!): void {
    const { node } = spot;
    step(job, { type: 'offer', node: node.id, epoch: node.epoch });
    const number = job.kernel.attempt;
    reserve(node.ledger, spot.slots.id, job.id, number);
    job.offered_ms ??= clock.now_ms();
    const attempt = newAttempt(job, number, spot, clock.wall_ms());
    job.current = attempt;
    holdAttempt(node, attempt);
    attempt.link = link;
    awaitAnswer(attempt, link);
    link.offer(attempt, {
      run_ms: job.kernel.policy.run_timeout_ms ?? settings.run_timeout_ms,
      first_byte_ms: settings.first_byte_timeout_ms,
      idle_ms: settings.idle_timeout_ms,
    });
  }

  function adopt(job: ActiveJob, spot: ModelSpot): Attempt {
    const attempt = newAttempt(job, job.kernel.attempt, spot, clock.wall_ms());
    attempt.asked = job.kernel.state === 'running';
    attempt.phase = attempt.asked ? 'started' : 'accepted';
    job.offered_ms = clock.now_ms();
    job.current = attempt;
    holdAttempt(spot.node, attempt);
    return attempt;
  }

  function takeBack(attempt: Attempt, message: string): void {
    const { job, number } = attempt;
    if (attempt.phase === 'over') return;
    if (job.kernel.policy.attached) {
      step(job, { type: 'node_lost', fence: fenceOf(attempt), retry_delay_ms: 0, message });
      return;
    }
    attempt.answer_timer?.cancel();
    attempt.link?.send({ type: 'job.abandon', job: job.id, attempt: number, reason: message });
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

  function close(job: ActiveJob, outcome: string, message: string | null): void {
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
    metrics.attemptEnded(outcome);
    const { node } = attempt;
    if (outcome === 'succeeded') node.failures /= 2;
    else if (outcome !== 'cancelled') {
      forgetFailures(node, clock.now_ms());
      node.failures += 1;
      job.owner.failedBy(job, node.id);
    }
    // It is linked to another replica by now, and tells that one that it has let go.
    if (node.replica !== null && attempt.link?.open !== true) settleSlot(attempt);
  }

  function tell(job: ActiveJob, message: 'cancel' | 'abandon', reason: string): void {
    const attempt = job.current!;
    const fence = { job: job.id, attempt: attempt.number };
    attempt.link?.send(
      message === 'cancel' ? { type: 'job.cancel', ...fence } : { type: 'job.abandon', ...fence, reason },
    );
  }

  function settleSlot(attempt: Attempt): void {
    const { node, job, number } = attempt;
    if (node.attempts.get(slotKey(job.id, number)) !== attempt) return;
    // Nobody holds it any more: it must not stay the attempt that counts.
    if (job.current === attempt) step(job, { type: 'node_lost', fence: fenceOf(attempt), retry_delay_ms: 0 });
    if (!attempt.unanswered) {
      dropAttempt(node, attempt);
      attempt.link?.closeStream(attempt);
    }
    if (release(node.ledger, job.id, number) !== undefined) freed(node);
  }
}
