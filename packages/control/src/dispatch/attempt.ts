import type { AttemptRecord, Fence, Timer } from '@flotilla/core';
import type { TokenUsage } from '@flotilla/protocol';
import type { FleetNode, ModelSpot } from '../fleet/node.ts';
import type { ActiveJob } from './active-job.ts';

/**
 * One grant of a job to a node, and how far its output has come.
 *
 *     offered ──accepted──▶ accepted ──started──▶ started ──▶ over
 *        └───────────────────────────────────────────▲ result, rejection, withdrawal, loss
 *
 * Once `over`, it only waits for the node to let go (its slot is taken until then); nothing it sends is used.
 */
export interface Attempt {
  readonly job: ActiveJob;
  readonly number: number;
  readonly node: FleetNode;
  readonly spot: ModelSpot;
  /** Of the connection the attempt is on now. */
  epoch: number;
  /** Its stream on that connection; 0: none, the link is away. */
  stream: number;
  phase: 'offered' | 'accepted' | 'started' | 'over';
  /** Ends the wait for an answer to the offer. */
  answer_timer: Timer | null;
  /** The head has come. */
  head: boolean;
  /** Response body bytes received in order. */
  received: number;
  /** Response body bytes that the node has been told it may forget. */
  credited: number;
  /** The body's length, once its end has come. */
  ended: { length: number; complete: boolean } | null;
  readonly story: AttemptRecord;
}

export function newAttempt(job: ActiveJob, number: number, spot: ModelSpot, offered_at: number): Attempt {
  const { node, backend } = spot;
  return {
    job,
    number,
    node,
    spot,
    epoch: node.epoch,
    stream: 0,
    phase: 'offered',
    answer_timer: null,
    head: false,
    received: 0,
    credited: 0,
    ended: null,
    story: {
      attempt: number,
      node: node.id,
      backend,
      epoch: node.epoch,
      outcome: 'open',
      code: null,
      message: null,
      offered_at,
      started_at: null,
      ended_at: null,
    },
  };
}

export function fenceOf(attempt: Attempt): Fence {
  return { attempt: attempt.number, node: attempt.node.id, epoch: attempt.epoch };
}

/** What the node measured and counted, with its result. */
export interface AttemptResult {
  status: number;
  length: number;
  usage: TokenUsage;
}
