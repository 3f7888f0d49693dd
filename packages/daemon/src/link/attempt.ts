import { OutStream, Relay, type RelayDone, type RelayTools } from '@flotilla/core';
import {
  type ControlMessageOf,
  FRAME_KIND,
  type InventoryItem,
  type NodeMessage,
  type NodeMessageOf,
  STORE_OWNER,
} from '@flotilla/protocol';
import type { EndedWork, JournalEntry } from '../threads.ts';
import type { Backend } from './backends.ts';
import { RequestBody } from './request-body.ts';

/**
 * One attempt on this node.
 *
 *     receiving ──body whole──▶ running ──relay done──▶ finished
 *         └──────────┬─────────────┴───────────────────────┘
 *                    └─ cancel, abandon, fence, link lost for 6 s ──▶ released
 *
 * Moved by: frames of the request body, the relay, the table (`Attempts`), which also forgets it: a finished one on
 * `result.ack`, a released one when the control plane has been told. A slot is held while receiving or running.
 * Of a detached one the journal on disk knows that it was begun, and its result (`ended`, `restored`): the process that
 * follows holds it as finished, or as released where there is no result. Nothing else of it survives the process.
 */
export type Offer = ControlMessageOf<'job.offer'>;
export type AttemptState = InventoryItem['state'];

export interface AttemptHost extends RelayTools {
  /** Sends if the link stands; what is lost with a link is told again after it. */
  say(message: NodeMessage): void;
  /** The same, for what may wait a moment to travel with what follows. */
  mention(message: NodeMessage): void;
  /** Left receiving or running: its slot is free. Called once. */
  idle(attempt: Attempt): void;
  /** The backend's part is over. */
  ended(attempt: Attempt, done: RelayDone): void;
  /** It has its result, which is under way. */
  finished(attempt: Attempt): void;
}

/** Of one detached answer; the control plane's own bound is below it, and ends what is larger. */
const KEPT_MOST_BYTES = 64 * 1024 * 1024;

export class Attempt {
  readonly offer: Offer;
  /** Null: an earlier process has asked it. */
  readonly backend: Backend | null;
  readonly out: OutStream;
  readonly accepted_at: number;
  state: AttemptState = 'receiving';
  /** Its stream on this connection; null: none yet. */
  stream: number | null;
  /** The control plane has been told that the attempt is taken. */
  answered = false;
  readonly #host: AttemptHost;
  readonly #body: RequestBody;
  #relay: Relay | null = null;
  #result: EndedWork['result'] | null = null;
  /** Said without its stream, which is gone. */
  #alone = false;

  constructor(offer: Offer, backend: Backend | null, host: AttemptHost) {
    this.offer = offer;
    this.backend = backend;
    this.stream = backend === null ? null : offer.stream;
    this.accepted_at = host.clock.now_ms();
    this.#host = host;
    this.#body = new RequestBody(offer.body_length);
    this.out = new OutStream({
      kind: FRAME_KIND.responseBody,
      writable: () => this.#relay?.resume(),
      ...(this.detached && { keep_bytes: KEPT_MOST_BYTES }),
    });
  }

  /** What an earlier process of this node has left of it. */
  static restored({ offer, ended }: JournalEntry, host: AttemptHost): Attempt {
    const attempt = new Attempt(offer, null, host);
    attempt.answered = true;
    attempt.state = ended === null ? 'released' : 'finished';
    if (ended === null) return attempt;
    const { result, answer } = ended;
    attempt.#result = result;
    if (answer === null) return attempt;
    attempt.out.head(answer.head);
    attempt.out.push(answer.body);
    attempt.out.end(answer.complete ? 'complete' : 'cut', () => host.say(result));
    return attempt;
  }

  /** Nobody waits for it on a connection: its answer is kept whole until `result.ack`, link or no link. */
  get detached(): boolean {
    return this.offer.owner === STORE_OWNER;
  }

  get started(): boolean {
    return this.#relay !== null;
  }

  get body_received(): number {
    return this.#body.received;
  }

  /** It has a result that no end frame will carry along: the result goes by itself. */
  get result_alone(): boolean {
    return this.#result !== null && (this.#alone || !this.out.ended);
  }

  /** For the journal. */
  get journalEntry(): JournalEntry {
    const { offer } = this;
    if (this.#result === null) return { offer, ended: null };
    return { offer, ended: { result: this.#result, answer: this.out.kept() ?? null } };
  }

  inventoryItem(): InventoryItem {
    return {
      job: this.offer.job,
      attempt: this.offer.attempt,
      owner: this.offer.owner,
      backend: this.offer.backend,
      state: this.state,
      body_offset: this.#body.received,
      stream_offset: this.out.length,
    };
  }

  /** @returns false when the frame cannot belong to the body that was offered */
  takeBody(offset: number, payload: Uint8Array): boolean {
    return this.state !== 'receiving' || this.#body.take(offset, payload);
  }

  /** The request body has ended. @returns false when it is not what was offered */
  endBody(length: number, complete: boolean): boolean {
    if (this.state !== 'receiving') return true;
    if (!complete || !this.#body.isWhole(length)) return false;
    this.#start();
    return true;
  }

  /** Tells how it stands, as an answer to an offer that came again. */
  answer(): void {
    const { job, attempt } = this.offer;
    this.answered = true;
    if (this.#result !== null) this.#host.say(this.#result);
    else if (this.state === 'released') this.sayReleased();
    else this.#host.mention({ type: this.started ? 'job.started' : 'job.accepted', job, attempt });
  }

  /** Its result by itself, without what is left of its output; false when it has none. */
  sayResult(): boolean {
    if (this.#result === null) return false;
    this.#alone = true;
    this.out.discard();
    this.#host.say(this.#result);
    return true;
  }

  sayReleased(): void {
    const { job, attempt } = this.offer;
    const usage = this.#relay?.usageSoFar();
    const { started } = this;
    this.#host.say({
      type: 'job.released',
      job,
      attempt,
      started,
      ...(usage === undefined ? {} : { usage }),
    });
  }

  /** Stops its work at once and lets go of everything but its name. */
  release(): void {
    const held = this.state === 'receiving' || this.state === 'running';
    this.state = 'released';
    this.#result = null;
    this.#relay?.abort();
    this.#body.drop();
    this.out.discard();
    if (held) this.#host.idle(this);
  }

  /** Ends without having asked the backend. */
  refuse(message: string): void {
    const { job, attempt } = this.offer;
    this.#finish({ type: 'job.failed', job, attempt, code: 'invalid_request', message, retryable: false });
  }

  #start(): void {
    const { offer } = this;
    this.state = 'running';
    this.answered = true;
    const task = {
      backend: this.backend!,
      operation: offer.operation,
      body: this.#body.bytes(),
      streaming: offer.streaming,
      add_usage: offer.add_usage,
      request_id: offer.request_id,
      traceparent: offer.traceparent,
      deadlines: offer.deadlines,
    };
    this.#relay = new Relay(task, this.out, this.#host, (done) => this.#relayDone(done));
    this.#host.mention({ type: 'job.started', job: offer.job, attempt: offer.attempt });
    this.#relay.start();
  }

  #relayDone(done: RelayDone): void {
    this.#host.ended(this, done);
    this.#finish(done.failure === undefined ? this.#completed(done) : this.#failed(done), done);
  }

  /** The slot is free before the result is under way, so that whoever sees the result finds the slot. */
  #finish(result: EndedWork['result'], done?: RelayDone): void {
    this.state = 'finished';
    this.answered = true;
    this.#result = result;
    this.#body.drop();
    this.#host.idle(this);
    if (done === undefined || done.status === null) this.#host.say(result);
    else this.out.end(done.failure === undefined ? 'complete' : 'cut', () => this.#host.say(result));
    // A deadline does not wait until a slow client has taken what came before it.
    if (done?.failure?.code === 'run_timeout' && this.stream !== null && !this.out.end_sent) this.sayResult();
    this.#host.finished(this);
  }

  #completed(done: RelayDone): NodeMessageOf<'job.completed'> {
    const { job, attempt } = this.offer;
    return {
      type: 'job.completed',
      job,
      attempt,
      result: { status: done.status ?? 0, length: this.out.length },
      usage: done.usage ?? { prompt_tokens: 0, completion_tokens: 0, cached_tokens: 0, estimated: true },
      ...(done.first_byte_ms === null ? {} : { first_byte_ms: round(done.first_byte_ms) }),
      total_ms: round(done.total_ms),
    };
  }

  #failed(done: RelayDone): NodeMessageOf<'job.failed'> {
    const { job, attempt } = this.offer;
    const { code, message, retryable, status, retry_after_ms } = done.failure!;
    return {
      type: 'job.failed',
      job,
      attempt,
      code,
      message,
      retryable,
      ...(status === undefined ? {} : { status }),
      ...(retry_after_ms === undefined ? {} : { retry_after_ms }),
      ...(done.usage === undefined ? {} : { usage: done.usage }),
    };
  }
}

function round(ms: number): number {
  return Math.round(ms * 10) / 10;
}
