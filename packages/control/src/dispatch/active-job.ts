import type {
  AttemptRecord,
  JobKernel,
  PlacementRequest,
  ResultOutcome,
  Timer,
  Waiting,
} from '@flotilla/core';
import type { ErrorCode, Operation, TerminalJobState } from '@flotilla/protocol';
import type { Attempt, AttemptResult } from './attempt.ts';
import type { RuledEnd } from './grants.ts';

/** What is asked of the fleet, as the gateway hands it in. */
export interface JobRequest {
  readonly id: string;
  readonly request_id: string;
  /** Of its attempts: the store, where it is detached. Absent: the replica that has its client. */
  readonly owner?: string;
  /** The key that pays and waits in line; its id. */
  readonly key: string;
  readonly model: string;
  readonly operation: Operation;
  readonly body: Uint8Array;
  readonly streaming: boolean;
  readonly add_usage: boolean;
  readonly labels: Readonly<Record<string, string>>;
  /** The conversation it belongs to, where the client says so, and the node that served it last. */
  readonly session: string | null;
  readonly affinity: string | null;
  readonly priority: number;
  /** Control planes that it came through before this one, by their names in `Via`. */
  readonly via: readonly string[];
  /** The client's trace, which goes on at the backend; null: it sent none. */
  readonly traceparent: string | null;
}

/** An open job in the memory of this replica: an attached one from its client on, a detached one from its claim on. */
export interface ActiveJob extends Waiting {
  readonly request: JobRequest;
  readonly sink: JobSink;
  readonly owner: JobOwner;
  kernel: JobKernel;
  placement: PlacementRequest;
  lane: string;
  /** The attempt that counts now. */
  current: Attempt | null;
  /** The attempt that counted last. */
  last: Attempt | null;
  readonly stories: AttemptRecord[];
  readonly created_at: number;
  readonly created_ms: number;
  /** First offer, for the queue time. */
  offered_ms: number | null;
  queued: boolean;
  deadline_timer: { readonly timer: Timer; readonly at_ms: number } | null;
  record_timer: Timer | null;
  retry_timer: Timer | null;
  /** A row of it is in the store already. */
  recorded: boolean;
}

/** Who answers for a job: what its rules say of the job itself, and not of the node that has it, is carried out here. */
export interface JobOwner {
  /** It has no attempt any more, and may be given away again at its kernel's `not_before_ms`. */
  requeue(job: ActiveJob): void;
  finish(job: ActiveJob, end: RuledEnd): void;
  deadlineMoved(job: ActiveJob): void;
  /** This node has failed the job, or lost it. */
  failedBy(job: ActiveJob, node: string): void;
  /** The node has had its last word on an attempt that did not count any more: what it has used is in it. */
  told(attempt: Attempt): void;
  /** Answers the node's result, which ends its replay: at once, or when what it says is committed. */
  acknowledge(attempt: Attempt, outcome: ResultOutcome): void;
}

/**
 * Where a job's output goes: the client's answer. Calls come in this order, beginning anew after `discard`:
 * head, body*, and at last `finished`. Only the attempt that counts is heard.
 */
export interface JobSink {
  started(attempt: Attempt): void;
  head(attempt: Attempt, status: number, headers: [string, string][]): void;
  body(attempt: Attempt, bytes: Uint8Array): void;
  /** The attempt's output is void: a new one begins from nothing. Never called once a byte was handed on. */
  discard(): void;
  /** Why the whole answer is no success after all (a stream without its `[DONE]`); null: it is. */
  fault(result: AttemptResult): string | null;
  finished(end: JobEnd): void;
}

export interface JobEnd {
  state: TerminalJobState;
  code: ErrorCode | null;
  message: string | null;
  /** The attempt whose result was accepted, or the last one. */
  attempt: Attempt | null;
  result: AttemptResult | null;
  retry_after_ms: number | undefined;
}
