import { ERRORS, type Operation, type TokenUsage } from '@flotilla/protocol';
import type { OutStream } from '../out-stream.ts';
import type { Clock } from '../ports/clock.ts';
import type { HttpAgent, HttpCalls, HttpControl, HttpHeaders } from '../ports/http-agent.ts';
import { SseScan } from '../sse-scan.ts';
import { estimateUsage } from '../token-usage.ts';
import {
  connectionFailure,
  type Failure,
  judgeAnswer,
  passedHeaders,
  tellsOfLoop,
  wasStaleConnection,
} from './backend-answer.ts';
import { type RelayBackend, pathOf } from './backend.ts';
import { BodyUsage } from './body-usage.ts';
import type { Deadlines, Expiring } from './deadlines.ts';
import { MASK, type SecretMask, newSecretMask } from './secret-mask.ts';
import { withUsageAsked } from './usage-request.ts';

/**
 * One request put to one backend, its answer handed to an out stream byte for byte.
 *
 *     asking ──head──▶ answering ──end──▶ over (completed)
 *       │ └─ refused include_usage, or a connection gone stale: asked once more ─┐
 *       ▲────────────────────────────────────────────────────────────────────────┘
 *       ├──head: 508 of a provider──▶ reading why ──end──▶ over (failed)
 *       └── failure, deadline ──▶ over (failed)          any ──abort()──▶ over (silent)
 *
 * Moved by: the HTTP agent's calls, the shared deadlines, `abort`. `done` is called once, never after `abort`.
 * Reading pauses while the out stream is full; a pause does not count as the backend's silence. A stream is whole with
 * its `[DONE]`, however the backend ends its connection then, or if it never does.
 */
export interface RelayTask {
  backend: RelayBackend;
  operation: Operation;
  body: Buffer;
  streaming: boolean;
  add_usage: boolean;
  request_id: string;
  /** The client's trace, if it goes on at the backend. */
  traceparent?: string | undefined;
  /** The control planes that ask, where it is not a node that does. */
  via?: string;
  deadlines: { run_ms: number; first_byte_ms: number; idle_ms: number };
}

export interface RelayDone {
  /** Undefined: completed. */
  failure: Failure | undefined;
  /** The answer's head is with the out stream; null: there is none. */
  status: number | null;
  usage: TokenUsage | undefined;
  first_byte_ms: number | null;
  total_ms: number;
}

export interface RelayTools {
  agent: HttpAgent;
  clock: Clock;
  deadlines: Deadlines;
}

const TRACEPARENT = /^[\da-f]{2}-[\da-f]{32}-[\da-f]{16}-[\da-f]{2}(?:-[\x21-\x7e]*)?$/;
/**
 * An answer that is none may repeat the key that it was asked with ("Incorrect API key provided: …"), so it is masked
 * there. A shorter one is no secret (`none`, `null`, `1`), and masked it would leave a refusal that is no JSON any more.
 */
const REFUSED_SECRET_MIN_LENGTH = 8;
/** So short a key is likely a word that was put where one had to be (`changeme`): a served answer may well have it. */
const SERVED_SECRET_MIN_LENGTH = 20;
/** Our own word of a loop is shorter. */
const REFUSAL_READ_MAX_BYTES = 4096;
/** A backend that has said `[DONE]`, or refused, gets this long to end its answer, and so to keep its connection. */
const AFTER_DONE_MS = 1000;
/** Of what it says after that, this much goes on: nobody reads it, so nobody would make room for more. */
const AFTER_DONE_BYTES = 64 * 1024;

export class Relay implements Expiring {
  seat = -1;
  readonly #task: RelayTask;
  readonly #tools: RelayTools;
  readonly #out: OutStream;
  readonly #done: (done: RelayDone) => void;
  readonly #asked_at: number;
  #call: Call | null = null;
  #over = false;
  /** The request was sent with `include_usage`, so its usage event is not the client's. */
  #usage_added = false;
  #usage_refused = false;
  #asked_again = false;
  #status: number | null = null;
  #scan: SseScan | null = null;
  #body_usage: BodyUsage | null = null;
  #mask: SecretMask | null = null;
  /** A failure whose body says whether it is of a loop. */
  #refusal: { failure: Failure; body: string } | null = null;
  #first_byte_at: number | null = null;
  #last_byte_at = 0;
  #done_at: number | null = null;
  #paused = false;

  constructor(task: RelayTask, out: OutStream, tools: RelayTools, done: (done: RelayDone) => void) {
    this.#task = task;
    this.#out = out;
    this.#tools = tools;
    this.#done = done;
    this.#asked_at = tools.clock.now_ms();
  }

  start(): void {
    const { body, streaming, add_usage, backend } = this.#task;
    let asked: Uint8Array | undefined;
    if (add_usage && streaming && !backend.refuses_usage) asked = withUsageAsked(body);
    this.#usage_added = asked !== undefined;
    this.#tools.deadlines.watch(this);
    this.#ask(asked === undefined ? body : Buffer.from(asked.buffer, asked.byteOffset, asked.byteLength));
  }

  /** Ends the request at once: the backend sees its connection closed. Nothing is reported. */
  abort(): void {
    if (this.#over) return;
    this.#over = true;
    this.#tools.deadlines.forget(this);
    this.#call?.kill();
  }

  /** The out stream has room again. */
  resume(): void {
    if (!this.#paused || this.#over) return;
    this.#paused = false;
    this.#last_byte_at = this.#tools.clock.now_ms();
    this.#tools.deadlines.watch(this);
    this.#call?.controller?.resume();
  }

  /** What the answer so far has cost; undefined before anything was produced. */
  usageSoFar(): TokenUsage | undefined {
    if (this.#scan !== null) {
      return this.#scan.usage ?? estimateUsage(this.#task.body.length, this.#scan.content_bytes);
    }
    return this.#first_byte_at === null ? undefined : estimateUsage(this.#task.body.length, this.#out.length);
  }

  dueAt(): number {
    const { run_ms, first_byte_ms } = this.#task.deadlines;
    const run = this.#asked_at + run_ms;
    if (this.#done_at !== null) return this.#done_at + AFTER_DONE_MS;
    if (this.#first_byte_at === null) return Math.min(run, this.#asked_at + first_byte_ms);
    return this.#paused ? run : Math.min(run, this.#last_byte_at + this.#idle_ms);
  }

  expire(now_ms: number): void {
    const { run_ms, first_byte_ms } = this.#task.deadlines;
    if (this.#done_at !== null) {
      this.ended();
      return;
    }
    if (now_ms >= this.#asked_at + run_ms) {
      const message = `The work ran longer than its ${seconds(run_ms)}.`;
      this.#fail({ code: 'run_timeout', message, retryable: false, unhealthy: false });
      return;
    }
    const message =
      this.#first_byte_at === null
        ? `The backend sent nothing for ${seconds(first_byte_ms)}.`
        : `The backend fell silent for ${seconds(this.#idle_ms)} in the middle of its answer.`;
    this.#fail({ code: 'backend_error', message, retryable: true, unhealthy: true });
  }

  get #idle_ms(): number {
    // Who knows the backend knows better how long it may be silent.
    return this.#task.backend.idle_timeout_ms ?? this.#task.deadlines.idle_ms;
  }

  #ask(body: Buffer): void {
    const { backend, operation, streaming, request_id, traceparent, via } = this.#task;
    this.#call?.kill();
    const call = new Call(this);
    this.#call = call;
    const headers = [...backend.headers, 'accept', streaming ? 'text/event-stream' : 'application/json'];
    if (/^[\x21-\x7e]+$/.test(request_id)) headers.push('x-request-id', request_id);
    if (traceparent !== undefined && TRACEPARENT.test(traceparent)) headers.push('traceparent', traceparent);
    if (via !== undefined) headers.push('via', via);
    const path = pathOf(backend, operation);
    try {
      this.#tools.agent.dispatch({ origin: backend.origin, path, method: 'POST', headers, body }, call);
    } catch (error) {
      this.failed(error as Error);
    }
  }

  // ── For the call ──

  answered(status: number, headers: HttpHeaders): void {
    if (this.#usage_added && (status === 400 || status === 422)) {
      this.#usage_added = false;
      this.#usage_refused = true;
      this.#ask(this.#task.body);
      return;
    }
    const failure = judgeAnswer(status, headers);
    if (failure !== undefined) {
      // Who names no way that it came asks no control plane.
      const may_loop = status === ERRORS.loop_detected.status && this.#task.via !== undefined;
      if (!may_loop) {
        this.#fail(failure);
        return;
      }
      this.#refusal = { failure, body: '' };
      this.#done_at = this.#tools.clock.now_ms();
      this.#tools.deadlines.watch(this);
      return;
    }
    const ok = status < 300;
    // Served without the field and not with it: the field it was.
    if (ok && this.#usage_refused) this.#task.backend.refuses_usage = true;
    this.#status = status;
    const { secret } = this.#task.backend;
    const hides =
      secret !== undefined && secret.length >= (ok ? SERVED_SECRET_MIN_LENGTH : REFUSED_SECRET_MIN_LENGTH);
    if (hides) this.#mask = newSecretMask(secret);
    const passed = passedHeaders(headers);
    if (hides) for (const name in passed) passed[name] = passed[name]!.replaceAll(secret, MASK);
    if (ok && passed['content-type']?.toLowerCase().startsWith('text/event-stream') === true) {
      this.#scan = new SseScan({ drop_usage_event: this.#usage_added, check_json: true });
    } else if (ok) this.#body_usage = new BodyUsage();
    this.#out.head(Buffer.from(JSON.stringify({ status, headers: passed })));
  }

  data(chunk: Buffer): void {
    if (this.#refusal !== null) {
      this.#refusal.body += chunk.toString('latin1');
      if (this.#refusal.body.length > REFUSAL_READ_MAX_BYTES) this.#fail(this.#refusal.failure);
      return;
    }
    this.#last_byte_at = this.#tools.clock.now_ms();
    if (this.#first_byte_at === null) {
      this.#first_byte_at = this.#last_byte_at;
      this.#tools.deadlines.watch(this);
    }
    const room = this.#take(this.#mask === null ? chunk : this.#mask.push(chunk));
    if (!room && !this.#over) {
      this.#paused = true;
      this.#call?.controller?.pause();
    }
  }

  /** @returns whether there is room for more */
  #take(bytes: Buffer): boolean {
    if (this.#scan !== null) return this.#pass(this.#scan, bytes);
    this.#body_usage?.push(bytes);
    return this.#out.push(bytes);
  }

  #pass(scan: SseScan, chunk: Buffer): boolean {
    if (scan.done_offset !== undefined && scan.bytes - scan.done_offset > AFTER_DONE_BYTES) return true;
    const pieces = scan.push(chunk);
    // What is wrong from its first event on goes nowhere: while nothing has been passed on, another may still answer.
    if (scan.unsound || (scan.error !== undefined && this.#out.length === 0)) {
      this.#fail(brokenStream(scan));
      return true;
    }
    let room = true;
    for (const piece of pieces) room = this.#out.push(piece);
    if (scan.done && this.#done_at === null) {
      this.#done_at = this.#last_byte_at;
      this.#tools.deadlines.watch(this);
    }
    return room;
  }

  ended(): void {
    if (this.#refusal !== null) {
      const { failure, body } = this.#refusal;
      this.#fail(tellsOfLoop(failure.status!, body) ? { ...failure, code: 'loop_detected' } : failure);
      return;
    }
    if (this.#mask !== null) this.#take(this.#mask.rest());
    // What waited may have been what is wrong with it.
    if (this.#over) return;
    if (this.#scan !== null) {
      for (const piece of this.#scan.finish()) this.#out.push(piece);
      const { done, finished, error, unsound } = this.#scan;
      if (error !== undefined || unsound || !(done || finished)) {
        this.#fail(brokenStream(this.#scan));
        return;
      }
    }
    this.#finish(undefined, this.#finalUsage());
  }

  failed(error: Error): void {
    if (this.#done_at !== null) {
      this.ended();
      return;
    }
    if (this.#status === null && !this.#asked_again && wasStaleConnection(error)) {
      this.#asked_again = true;
      this.start();
      return;
    }
    this.#fail(connectionFailure(error, this.#status !== null));
  }

  #finalUsage(): TokenUsage {
    const none = { prompt_tokens: 0, completion_tokens: 0, cached_tokens: 0, estimated: false };
    if (this.#scan !== null) return this.usageSoFar() ?? none;
    if (this.#body_usage === null) return none;
    return this.#body_usage.usage() ?? estimateUsage(this.#task.body.length, this.#out.length);
  }

  #fail(failure: Failure): void {
    this.#finish(failure, this.usageSoFar());
  }

  #finish(failure: Failure | undefined, usage: TokenUsage | undefined): void {
    if (this.#over) return;
    this.abort();
    this.#done({
      failure,
      status: this.#status,
      usage,
      first_byte_ms: this.#first_byte_at === null ? null : this.#first_byte_at - this.#asked_at,
      total_ms: this.#tools.clock.now_ms() - this.#asked_at,
    });
  }
}

function brokenStream(scan: SseScan): Failure {
  const message =
    scan.error !== undefined
      ? 'The backend reported an error in its stream.'
      : scan.unsound
        ? 'The backend sent an event that is not JSON.'
        : 'The backend ended its stream before the answer was whole.';
  return { code: 'backend_error', message, retryable: true, unhealthy: true };
}

function seconds(ms: number): string {
  return `${Number((ms / 1000).toPrecision(3))} s`;
}

/** One dispatch; a killed one says nothing more. */
class Call implements HttpCalls {
  controller: HttpControl | null = null;
  readonly #relay: Relay;
  #live = true;
  #complete = false;

  constructor(relay: Relay) {
    this.#relay = relay;
  }

  kill(): void {
    this.#live = false;
    if (!this.#complete) this.controller?.abort(new Error('The relay ended this request.'));
  }

  onRequestStart(controller: HttpControl): void {
    this.controller = controller;
    if (!this.#live) controller.abort(new Error('The relay ended this request.'));
  }

  onResponseStart(_controller: HttpControl, status: number, headers: HttpHeaders): void {
    if (this.#live && status >= 200) this.#relay.answered(status, headers);
  }

  onResponseData(_controller: HttpControl, chunk: Buffer): void {
    if (this.#live) this.#relay.data(chunk);
  }

  onResponseEnd(): void {
    this.#complete = true;
    if (this.#live) this.#relay.ended();
  }

  onResponseError(_controller: HttpControl, error: Error): void {
    this.#complete = true;
    if (this.#live) this.#relay.failed(error);
  }
}
