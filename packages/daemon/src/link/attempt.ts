import { OutStream } from '@flotilla/core';
import {
  type ControlMessageOf,
  FRAME_KIND,
  type InventoryItem,
  type NodeMessage,
  type NodeMessageOf,
} from '@flotilla/protocol';
import type { Backend } from './backends.ts';
import { Relay, type RelayDone, type RelayTools } from './relay.ts';
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
 * Nothing of it survives the process.
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
}

export class Attempt {
  readonly offer: Offer;
  readonly backend: Backend;
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
  #result: NodeMessage | null = null;

  constructor(offer: Offer, backend: Backend, host: AttemptHost) {
    this.offer = offer;
    this.backend = backend;
    this.stream = offer.stream;
    this.accepted_at = host.clock.now_ms();
    this.#host = host;
    this.#body = new RequestBody(offer.body_length);
    this.out = new OutStream({ kind: FRAME_KIND.responseBody, writable: () => this.#relay?.resume() });
  }

  get started(): boolean {
    return this.#relay !== null;
  }

  get body_received(): number {
    return this.#body.received;
  }

  /** It has a result that no end frame will carry along: the result goes by itself. */
  get result_alone(): boolean {
    return this.#result !== null && !this.out.ended;
  }

  inventoryItem(): InventoryItem {
    return {
      job: this.offer.job,
      attempt: this.offer.attempt,
      owner: this.offer.owner,
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
      backend: this.backend,
      operation: offer.operation,
      body: this.#body.bytes(),
      streaming: offer.streaming,
      add_usage: offer.add_usage,
      request_id: offer.request_id,
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
  #finish(result: NodeMessage, done?: RelayDone): void {
    this.state = 'finished';
    this.answered = true;
    this.#result = result;
    this.#body.drop();
    this.#host.idle(this);
    if (done === undefined || done.status === null) this.#host.say(result);
    else this.out.end(done.failure === undefined ? 'complete' : 'cut', () => this.#host.say(result));
    // A deadline does not wait until a slow client has taken what came before it.
    if (done?.failure?.code === 'run_timeout' && this.stream !== null && !this.out.end_sent) this.sayResult();
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
