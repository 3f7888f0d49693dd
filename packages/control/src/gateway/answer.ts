import { isJson } from '../is-json.ts';
import { type Clock, SseScan, type Timer, estimateUsage } from '@flotilla/core';
import { ERRORS, type ErrorCode, type TokenUsage, errorBody, retryHeaders } from '@flotilla/protocol';
import type { ServerResponse } from 'node:http';
import type { ActiveJob, JobEnd, JobSink } from '../dispatch/active-job.ts';
import type { Attempt, AttemptResult } from '../dispatch/attempt.ts';
import { Client, type HeaderList } from './client.ts';

/**
 * One client's answer, fed by the attempt that counts.
 *
 *     waiting ──head: event stream──▶ streaming ─────────┐
 *     waiting ──head: anything else─▶ holding ──1 MiB──▶ flowing
 *        └──10 s, asked to stream──▶ commented (200 and comments; then streaming)
 *     any of them ──finished──▶ settling (the record is being committed) ──▶ over
 *     any of them ──client gone──▶ over
 *
 * What makes an answer a success is held back until its record is committed (promise P2): the `[DONE]` event of a
 * stream, the last piece of a long answer, the whole of one up to 1 MiB, whose status so stays true. A stream that was
 * cut ends with an error in the stream and no `[DONE]` (P6).
 */
export interface AnswerDeps {
  clock: Clock;
  stall_ms: number;
  /** Commits the record of a success; rejects when that takes too long for the client to wait. */
  commit(job: ActiveJob, outcome: AnswerOutcome): Promise<unknown>;
  /** Sees to it that the record of anything else is committed, however long the store is away. */
  record(job: ActiveJob, outcome: AnswerOutcome): void;
  /** The client has gone: the work has no purpose any more. */
  gone(job: ActiveJob, reason: string): void;
  handed(job: ActiveJob): void;
  credit(attempt: Attempt, offset: number): void;
  position(job: ActiveJob): number | null;
  /** Headers that every reply to this client carries, in a list of their own. */
  headers(job: ActiveJob, attempt: Attempt | null): HeaderList;
  over(): void;
}

/** How it ended for the client, for the record. */
export interface AnswerOutcome {
  end: JobEnd;
  outcome: string;
  status: number;
  usage: TokenUsage;
  first_byte_ms: number | null;
  finished_ms: number;
}

const NOTHING_USED: TokenUsage = {
  prompt_tokens: 0,
  completion_tokens: 0,
  cached_tokens: 0,
  estimated: false,
};
const HOLD_BYTES = 1024 * 1024;
const COMMENT_AFTER_MS = 10_000;
const COMMENT_EVERY_MS = 10_000;

type Phase = 'waiting' | 'holding' | 'flowing' | 'streaming' | 'settling' | 'over';

export class Answer implements JobSink {
  job!: ActiveJob;
  readonly #deps: AnswerDeps;
  #client!: Client;
  readonly #streaming: boolean;
  readonly #began_ms: number;
  #phase: Phase = 'waiting';
  #commented = false;
  #comment_timer: Timer | null = null;
  #attempt: Attempt | null = null;
  #status = 200;
  #headers: [string, string][] = [];
  /** Of a held answer, or the last piece of a flowing one. */
  #held: Uint8Array[] = [];
  #held_bytes = 0;
  #scan = newScan();
  /** Body bytes of the attempt that the client's socket has taken, or that are ours for good. */
  #handed_bytes = 0;
  #first_byte_ms: number | null = null;

  constructor(streaming: boolean, deps: AnswerDeps) {
    this.#deps = deps;
    this.#streaming = streaming;
    this.#began_ms = deps.clock.now_ms();
  }

  /** The job was accepted: from here on the reply is this answer's. */
  begin(job: ActiveJob, response: ServerResponse): void {
    this.job = job;
    this.#client = new Client(response, this.#deps.clock, this.#deps.stall_ms, {
      taken: (bytes) => this.#taken(bytes),
      gone: (reason) => this.#gone(reason),
      done: () => this.#close(),
    });
    if (this.#streaming)
      this.#comment_timer = this.#deps.clock.after(COMMENT_AFTER_MS, () => this.#comment());
    if (response.destroyed || response.closed) this.#gone('it closed the connection');
  }

  started(attempt: Attempt): void {
    this.#attempt = attempt;
  }

  head(attempt: Attempt, status: number, headers: [string, string][]): void {
    if (this.#phase !== 'waiting') return;
    this.#attempt = attempt;
    this.#status = status;
    this.#headers = headers;
    const is_stream = headers.some(
      ([name, value]) => name === 'content-type' && value.toLowerCase().startsWith('text/event-stream'),
    );
    this.#phase = is_stream && status < 300 ? 'streaming' : 'holding';
  }

  body(_attempt: Attempt, bytes: Uint8Array): void {
    this.#first_byte_ms ??= this.#elapsed_ms();
    switch (this.#phase) {
      case 'streaming':
        for (const piece of this.#scan.push(bytes)) this.#hand(piece);
        return;
      case 'holding':
        this.#hold(bytes);
        return;
      case 'flowing':
        this.#flow(bytes);
        return;
      default:
        return;
    }
  }

  discard(): void {
    if (this.#phase === 'settling' || this.#phase === 'over') return;
    this.#phase = 'waiting';
    this.#attempt = null;
    this.#held = [];
    this.#held_bytes = 0;
    this.#handed_bytes = 0;
    this.#scan = newScan();
    this.#first_byte_ms = null;
  }

  fault(result: AttemptResult): string | null {
    if (this.#phase === 'streaming') {
      return this.#scan.done ? null : 'the stream ended without `[DONE]`';
    }
    if (this.#streaming && result.status < 300) return 'the backend did not answer with an event stream';
    if (result.status < 300 && this.#phase === 'holding' && !isJson(this.#whole())) {
      return 'the answer is not JSON';
    }
    return null;
  }

  finished(end: JobEnd): void {
    if (this.#phase === 'over') return;
    this.#comment_timer?.cancel();
    const from = this.#phase;
    this.#phase = 'settling';
    if (end.state === 'succeeded') void this.#succeed(end, from);
    else this.#fail(end, from);
  }

  async #succeed(end: JobEnd, from: Phase): Promise<void> {
    const outcome = this.#outcome(
      end,
      this.#status < 400 ? 'succeeded' : 'invalid_request',
      this.#status,
      end.result!.usage,
    );
    try {
      await this.#deps.commit(this.job, outcome);
    } catch {
      return this.#unrecorded(end, from);
    }
    if (from === 'holding') {
      const body = this.#whole();
      if (this.#commented) return this.#tellInStream(body);
      return this.#client.answer(this.#status, this.#backendHeaders(), body);
    }
    if (from === 'flowing') for (const piece of this.#held) this.#hand(piece);
    else for (const piece of this.#scan.release()) this.#hand(piece);
    this.#client.end();
  }

  #fail(end: JobEnd, from: Phase): void {
    const code = end.code ?? 'internal';
    const started = this.#client.headersSent;
    // Who got nothing pays nothing, and so nothing twice when it asks again.
    const usage = this.job.kernel.handed ? this.#estimate() : NOTHING_USED;
    this.#deps.record(this.job, this.#outcome(end, code, started ? 200 : ERRORS[code].status, usage));
    this.#refuse(from, code, end.message ?? code, end);
  }

  /** The client is given no success, and so says the record, unless the store has the success and lost only its word. */
  #unrecorded(end: JobEnd, from: Phase): void {
    const message = 'The answer could not be recorded, so it is not given as a success.';
    const failure: JobEnd = { ...end, state: 'failed', code: 'unavailable', message };
    const status = this.#client.headersSent ? 200 : ERRORS.unavailable.status;
    this.#deps.record(this.job, this.#outcome(failure, 'unavailable', status, end.result!.usage));
    this.#refuse(from, 'unavailable', message);
  }

  /** The status line is long gone: what the backend said instead of a stream is told in the stream, as it said it. */
  #tellInStream(body: Uint8Array): void {
    const text = Buffer.from(body).toString().trim();
    this.#client.write(Buffer.from(`data: ${text.replaceAll(/\r\n|[\r\n]/g, '\ndata: ')}\n\n`), false);
    this.#client.end();
  }

  /** Ends as an error: as a reply of its own where nothing was sent, in the stream where it has begun. */
  #refuse(from: Phase, code: ErrorCode, message: string, end?: JobEnd): void {
    const more = end === undefined ? undefined : storiesOf(this.job);
    const details = more === undefined ? {} : { more: { attempts: more } };
    const body = JSON.stringify(errorBody(code, message, details));
    if (!this.#client.headersSent) {
      const headers = this.#replyHeaders();
      headers.push(...Object.entries(retryHeaders(code, end?.retry_after_ms)).flat());
      headers.push('content-type', 'application/json; charset=utf-8');
      return this.#client.answer(ERRORS[code].status, headers, Buffer.from(body));
    }
    if (from === 'flowing') return this.#client.cut();
    // A cut event must not run into ours: the empty line ends it.
    this.#client.write(Buffer.from(`\n\ndata: ${body}\n\n`), false);
    this.#client.end();
  }

  /** A client that leaves once it has its `finish_reason` was served. */
  #gone(reason: string): void {
    this.#comment_timer?.cancel();
    const before = this.#phase;
    this.#phase = 'over';
    if (before === 'settling' || before === 'over') return this.#deps.over();
    const served = before === 'streaming' && this.#scan.finished;
    const code = served ? 'succeeded' : 'cancelled';
    const end: JobEnd = {
      state: served ? 'succeeded' : 'cancelled',
      code: served ? null : 'cancelled',
      message: served ? null : `The client went away: ${reason}.`,
      attempt: this.#attempt,
      result: null,
      retry_after_ms: undefined,
    };
    this.#deps.gone(this.job, `the client went away: ${reason}`);
    this.#deps.record(this.job, this.#outcome(end, code, served ? 200 : 499, this.#estimate()));
    this.#deps.over();
  }

  #close(): void {
    this.#phase = 'over';
    this.#deps.over();
  }

  #outcome(end: JobEnd, outcome: string, status: number, usage: TokenUsage): AnswerOutcome {
    return {
      end,
      outcome,
      status,
      usage,
      first_byte_ms: this.#first_byte_ms,
      finished_ms: this.#elapsed_ms(),
    };
  }

  #estimate(): TokenUsage {
    if (this.#scan.usage !== undefined) return this.#scan.usage;
    const prompt_bytes = this.#attempt === null ? 0 : this.job.request.body.byteLength;
    return estimateUsage(prompt_bytes, this.#scan.content_bytes);
  }

  #hold(bytes: Uint8Array): void {
    this.#held_bytes += bytes.byteLength;
    const fits = this.#held_bytes <= HOLD_BYTES;
    // After a comment the status line is gone, and it cannot flow: more of an error than fits is nothing for people.
    if (fits || !this.#commented) this.#held.push(bytes);
    if (fits || this.#commented) {
      // Ours for good: the node may forget it and send on.
      this.#handed_bytes += bytes.byteLength;
      this.#deps.credit(this.#attempt!, this.#handed_bytes);
      return;
    }
    this.#phase = 'flowing';
    this.#sendHead();
    this.#deps.handed(this.job);
    const last = this.#held.pop()!;
    for (const piece of this.#held) this.#client.write(piece, false);
    this.#held = [last];
  }

  /** What is held, as one piece, which it stays: it is read, and then sent. */
  #whole(): Uint8Array {
    if (this.#held.length !== 1) this.#held = [Buffer.concat(this.#held)];
    return this.#held[0]!;
  }

  /** The last piece stays until the record is committed. */
  #flow(bytes: Uint8Array): void {
    for (const piece of this.#held) this.#hand(piece);
    this.#held = [bytes];
  }

  #hand(piece: Uint8Array): void {
    this.#sendHead();
    if (!this.job.kernel.handed) this.#deps.handed(this.job);
    this.#client.write(piece, true);
  }

  #taken(bytes: number): void {
    this.#handed_bytes += bytes;
    if (this.#attempt !== null) this.#deps.credit(this.#attempt, this.#handed_bytes);
  }

  /** With the first byte, not before: until then another node may still serve it, unseen. */
  #sendHead(): void {
    // From here on a comment could stand in the middle of an event.
    this.#comment_timer?.cancel();
    if (this.#client.headersSent) return;
    const headers = this.#backendHeaders();
    if (this.#phase === 'streaming') headers.push(...STREAM_HEADERS);
    this.#client.head(this.#status, headers);
  }

  /** Only a stream that has waited this long gets its 200 before the backend has spoken. */
  #comment(): void {
    if (this.#phase !== 'waiting' && this.#phase !== 'streaming') return;
    if (!this.#commented) {
      this.#commented = true;
      const headers = this.#replyHeaders();
      headers.push('content-type', 'text/event-stream; charset=utf-8', ...STREAM_HEADERS);
      this.#client.head(200, headers);
    }
    const position = this.#deps.position(this.job);
    this.#client.write(
      Buffer.from(position === null ? ': working\n\n' : `: waiting, ${position} before this one\n\n`),
      false,
    );
    this.#comment_timer = this.#deps.clock.after(COMMENT_EVERY_MS, () => this.#comment());
  }

  #replyHeaders(): HeaderList {
    return this.#deps.headers(this.job, this.#attempt);
  }

  #backendHeaders(): HeaderList {
    const headers = this.#replyHeaders();
    for (const [name, value] of this.#headers) headers.push(name, value);
    return headers;
  }

  #elapsed_ms(): number {
    return this.#deps.clock.now_ms() - this.#began_ms;
  }
}

function newScan(): SseScan {
  return new SseScan({ hold_done: true });
}

/** Proxies that buffer would turn a stream into one late piece. */
const STREAM_HEADERS = ['x-accel-buffering', 'no'];

function storiesOf(job: ActiveJob): { attempt: number; outcome: string }[] | undefined {
  if (job.stories.length === 0) return undefined;
  return job.stories.map(({ attempt, outcome, message }) => ({ attempt, outcome, message }));
}
