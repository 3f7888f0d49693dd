import type { TerminalJobState, TokenUsage } from '@flotilla/protocol';
import type { ResultOutcome } from '../job.ts';
import type { JobRecord, UsageRecord } from './store.ts';

/**
 * Detached jobs: acknowledged with 202, so the store is their owner, and its rows follow the rules of `job.ts`.
 *
 *     queued ──claim──▶ leased ──start──▶ running ──finish──▶ succeeded | failed | timed_out | cancelled
 *        ▲                 │                  │
 *        └──── requeue, by its fence ─────────┘          cancel and expire end whatever is open
 *
 * Every transition of an attempt names its fence and is answered for each item, in the batch's order: a lost answer is
 * repaired by saying the same again. Deadlines, back-off and retention are told as durations and judged by the store's
 * own clock, so replicas' clocks meet nowhere.
 */
export interface DetachedJobs {
  /** A promise that resolves is the 202's: the job is committed. */
  acceptJobs(batch: DetachedJob[]): Promise<Acceptance[]>;
  /** What came with these idempotency keys before; null: nothing did. */
  findReplayed(batch: IdempotentJob[]): Promise<(Acceptance | null)[]>;
  /** Leases ready jobs to nodes, the smallest order keys first; committed before an offer may leave. */
  claimJobs(request: ClaimRequest): Promise<ClaimedJob[]>;
  startJobs(batch: JobFence[]): Promise<ResultOutcome[]>;
  /** Back to the queue, with the story of the attempt that ended. */
  requeueJobs(batch: Requeue[]): Promise<ResultOutcome[]>;
  finishJobs(batch: Finish[]): Promise<ResultOutcome[]>;
  /**
   * A node is back and keeps these attempts: its new epoch becomes theirs. One that it had finished is its own again
   * although it was taken for lost, as long as nobody else was given the job. @returns those that are its own
   */
  keepJobs(node: string, epoch: number, replica: string, jobs: InventoriedJob[]): Promise<KeptJob[]>;
  /** What a node holds by the store's account. */
  heldJobs(node: string): Promise<HeldJob[]>;
  /** The nodes that hold anything, by the store's account. */
  heldNodes(): Promise<string[]>;
  /** Lanes with a job that could be claimed now, in order of their names, each with its smallest order key. */
  readyLanes(limit: number, after: string): Promise<ReadyLane[]>;
  /** How long until a deadline or a back-off is over, by the store's clock; null: there is none. */
  nextDue(spared: readonly string[]): Promise<number | null>;
  cancelJob(id: string, message: string): Promise<Cancellation>;
  /**
   * Ends what has passed its queue or run deadline. Any replica may call it at any time.
   * @param spared nodes of which what they hold is left alone, and jobs while somebody holds them
   */
  expireJobs(limit: number, spared: readonly string[]): Promise<EndedJob[]>;
  /** Jobs whose back-off is over become ready. @returns their lanes, with the first of them in each */
  readyJobs(limit: number): Promise<ReadyLane[]>;
  findDetached(id: string): Promise<DetachedState | undefined>;
  /** Whether jobs have moved, by one look for all: each that is there has another mark after each of its transitions. */
  jobMarks(ids: readonly string[]): Promise<JobMark[]>;
  /** The usage rows of those that have ended. */
  findUsage(jobs: readonly string[]): Promise<UsageRecord[]>;
  /**
   * Puts a node's late word into the usage rows that were written without it: once a row, for the attempt that the row is
   * of. Whatever else is told is passed over. A batch has one word a job.
   */
  correctUsage(batch: UsageWord[]): Promise<void>;
  /** What open jobs reserve of their keys' budgets, the oldest first; read at start, never by a request. */
  loadReservations(limit: number): Promise<Reservation[]>;
  loadBodies(id: string): Promise<JobBodies | undefined>;
  /** How much `loadResult` brings, without loading it. */
  measureResult(id: string): Promise<ResultMeasure | undefined>;
  loadResult(id: string): Promise<string | null>;
  /** At once, whatever its retention. */
  deleteBodies(id: string): Promise<boolean>;
  /** Bodies and results whose retention is over. @returns how many jobs' */
  eraseBodies(limit: number): Promise<number>;
}

export interface DetachedJob {
  id: string;
  kind: JobRecord['kind'];
  /** The replica that accepted it. */
  replica: string;
  key: string | null;
  model: string;
  operation: string;
  request_id: string;
  /** Jobs that the same nodes can serve. */
  lane: string;
  order_key: number;
  priority: number;
  metadata: Record<string, unknown>;
  /** What the client asked for, as sent. Secrets in it are sealed. */
  request: string;
  retention_ms: number;
  on_node_loss: 'requeue' | 'wait_for_origin' | 'fail';
  max_attempts: number;
  queue_timeout_ms: number;
  run_timeout_ms: number | null;
  idempotency: { key: string; body_hash: string } | null;
  traceparent: string | null;
  /** Of its key's budget while it is open. */
  reserved_tokens: number;
  created_at: number;
}
/** A submission, as far as it says whether it came before. */
export interface IdempotentJob {
  key: string | null;
  idempotency: NonNullable<DetachedJob['idempotency']>;
}
/** `existing`: the same idempotency key came with the same body before; `conflict`: with another one. */
export type Acceptance = { accepted: string } | { existing: string } | { conflict: string };

export interface ClaimRequest {
  replica: string;
  /** Free slots. Lanes that share a pool's slots go into one request, whose `limit` is the pool's free slots. */
  lanes: ClaimedLane[];
  limit: number;
  /** Of all requests together; the first job comes however large it is. Absent: as many as there are. */
  bytes_most?: number;
}
export interface ClaimedLane {
  lane: string;
  node: string;
  epoch: number;
  free: number;
  /**
   * Jobs with a smaller order key are passed over. What was claimed stays in the index until it is cleaned up, and who
   * knows where the line begins does not have to walk past it. Absent: the line is read from its beginning.
   */
  from_order_key?: number;
}
export interface JobFence {
  id: string;
  attempt: number;
  node: string;
  epoch: number;
}
export interface ClaimedJob extends JobFence {
  kind: JobRecord['kind'];
  lane: string;
  key: string | null;
  model: string;
  operation: string;
  request_id: string;
  order_key: number;
  priority: number;
  failures: number;
  max_attempts: number;
  on_node_loss: DetachedJob['on_node_loss'];
  run_timeout_ms: number | null;
  /** Of the client's trace. */
  traceparent: string | null;
  created_at: number;
  /** Null once erased, or not asked for. */
  request: string | null;
  /** In UTF-8; 0 once erased. */
  request_bytes: number;
}
export interface InventoriedJob {
  id: string;
  attempt: number;
  /** The node has its result. */
  finished: boolean;
  /** The node has not all of the request. */
  wants_request: boolean;
}
export interface KeptJob extends ClaimedJob {
  state: 'leased' | 'running';
}
export interface JobMark {
  id: string;
  mark: string;
}
export interface ReadyLane {
  lane: string;
  order_key: number;
  /** Of the job that has it. */
  priority: number;
}

interface Story {
  backend: string | null;
  /** `succeeded`, or why the attempt ended. */
  outcome: string;
  code: string | null;
  message: string | null;
}
export interface Requeue extends JobFence, Story {
  /** Back-off; 0: ready at once. */
  delay_ms: number;
  /** Whether it counts against `max_attempts`. */
  counts: boolean;
  /** Of the node's result, if it sent one: the same again is a duplicate. */
  digest: string | null;
  /** Where it waits from now on: the lane tells who has failed it. */
  lane: string;
}
export interface Finish extends JobFence, Story {
  state: TerminalJobState;
  digest: string;
  error_code: string | null;
  error_message: string | null;
  result: string | null;
  /** Null: nobody who counted is left; its row has an estimate, and the status of work that was lost. */
  usage: UsageRecord | null;
  /** The tokens of its usage row are a guess that the node's word may still replace. */
  provisional: boolean;
  /** So long ago the attempt was started, where its start comes with its end. */
  started_ago_ms?: number;
}

/** What a node says that an attempt has used. */
export interface UsageWord extends TokenUsage {
  job: string;
  attempt: number;
  /** Or the provider. */
  node: string;
}
export interface Reservation {
  job: string;
  key: string;
  tokens: number;
  created_at: number;
}

export interface HeldJob extends JobFence {
  replica: string;
  lane: string;
  order_key: number;
  priority: number;
  state: 'leased' | 'running';
  on_node_loss: DetachedJob['on_node_loss'];
  failures: number;
  max_attempts: number;
}
export interface EndedJob {
  id: string;
  state: TerminalJobState;
  error_code: string;
  /** The attempt to tell its node to stop; null: none was under way. */
  fence: JobFence | null;
  /** The row that was written for it: what the attempt must have used so far, which its node's word may still replace. */
  usage: UsageRecord;
}
export type Cancellation = { cancelled: EndedJob } | { refused: 'unknown' | 'ended' };

export interface DetachedState {
  id: string;
  state: JobRecord['state'];
  lane: string;
  order_key: number;
  priority: number;
  metadata: Record<string, unknown>;
  attempt: number;
  failures: number;
  max_attempts: number;
  node: string | null;
  epoch: number | null;
  offered_at: number | null;
  started_at: number | null;
  /** By the store's clock; null: ready, or not waiting. */
  not_before: number | null;
  deadline_at: number | null;
  traceparent: string | null;
}
export interface ResultMeasure {
  /** In UTF-8; null: there is none. */
  result_bytes: number | null;
  erase_at: JobBodies['erase_at'];
}
export interface JobBodies {
  request: string | null;
  result: string | null;
  /** By the store's clock; null: the job is still open. */
  erase_at: number | null;
}
