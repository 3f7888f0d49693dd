import type { AttemptRecord, Fence, Timer } from '@flotilla/core';
import type { TokenUsage } from '@flotilla/protocol';
import { withModel } from '../gateway/inference-request.ts';
import type { Link } from '../fleet/link.ts';
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
  /** The request as this place reads it: under the model's name there. */
  readonly body: Uint8Array;
  /** Of the connection the attempt is on now. */
  epoch: number;
  /** The connection it is on, or was on last: the node's, or the way to the replica that has that. */
  link: Link | null;
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
  /** Its result is here and not answered yet: the node holds it until then, without a slot. */
  unanswered: boolean;
  /** Its node has asked the backend, by its own word. */
  asked: boolean;
  /** What the node says that it has used, whatever became of it; null: nothing yet. */
  usage: TokenUsage | null;
  /** The node broke the link's rules for it: nothing more of its output is taken. */
  broken: boolean;
  readonly story: AttemptRecord;
}

export function newAttempt(job: ActiveJob, number: number, spot: ModelSpot, offered_at: number): Attempt {
  const { node, backend, model } = spot;
  const { request } = job;
  return {
    job,
    number,
    node,
    spot,
    body: model === request.model ? request.body : withModel(request.body, model),
    epoch: node.epoch,
    link: null,
    stream: 0,
    phase: 'offered',
    answer_timer: null,
    head: false,
    received: 0,
    credited: 0,
    ended: null,
    unanswered: false,
    asked: false,
    usage: null,
    broken: false,
    story: {
      attempt: number,
      node: node.is_provider ? null : node.id,
      provider: node.is_provider ? node.id : null,
      backend: node.is_provider ? null : backend,
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
