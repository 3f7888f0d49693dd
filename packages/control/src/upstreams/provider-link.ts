import {
  ChurnMap,
  type Deadlines,
  type HttpAgent,
  OutStream,
  Relay,
  type RelayBackend,
  type RelayDone,
  type RelayTools,
  slotKey,
  viaOf,
} from '@flotilla/core';
import {
  type ControlMessage,
  type ControlMessageOf,
  FRAME_KIND,
  FRAME_PAYLOAD_MAX_BYTES,
  decodeFrame,
} from '@flotilla/protocol';
import type { Attempt } from '../dispatch/attempt.ts';
import type { Dispatcher } from '../dispatch/dispatcher.ts';
import { type AttemptMessage, takeAttemptMessage, takeFrame } from '../dispatch/node-messages.ts';
import type { Link } from '../fleet/link.ts';
import type { FleetNode } from '../fleet/node.ts';

/**
 * What stands in for a node's link where the control plane asks an upstream itself: the same offers, frames, windows
 * and results, without a wire between. So an attempt at a provider is an attempt like any other.
 *
 *     offered ──next turn──▶ asked ──relay done, output taken──▶ result told
 *         └────────────────────┴── cancel, abandon ──▶ aborted at once, released told
 *
 * What the dispatcher says is answered in a later turn, never inside its own call. Nothing here outlives its attempt.
 */
export interface ProviderLinkDeps {
  clock: RelayTools['clock'];
  deadlines: Deadlines;
  dispatcher: () => Dispatcher;
  /** This control plane's name in `Via`. */
  pseudonym: string;
  /** It gets the `traceparent` of what it is asked. */
  traced: boolean;
  /** How the provider is asked from now on; null: its key cannot be used. */
  upstream(): Upstream | null;
  /** A request is over; what became of it says how the provider is. @returns what is told of a failure */
  ended(done: RelayDone, attempt: Attempt, asked: RelayBackend): RelayDone['failure'];
}

interface Upstream {
  agent: HttpAgent;
  backend: RelayBackend;
  first_byte_timeout_ms: number | null;
}

interface Asking {
  attempt: Attempt;
  stream: number;
  out: OutStream | null;
  relay: Relay | null;
  pumping: boolean;
}

export function openProviderLink(node: FleetNode, deps: ProviderLinkDeps): Link {
  const { clock, deadlines, dispatcher } = deps;
  const by_attempt = new ChurnMap<string, Asking>();
  const by_stream = new ChurnMap<number, Asking>();
  let next_stream = 1;
  let heard = 0;

  return {
    epoch: node.epoch,
    open: true,
    // Its work ends with this process, which is all that could have a lease.
    fences: true,
    rtt_ms: 0,
    get heard() {
      return heard;
    },
    send,
    offer,
    // No connection to it ever comes back: there is none.
    resume: () => undefined,
    closeStream(attempt) {
      const asking = by_attempt.get(keyOf(attempt));
      attempt.stream = 0;
      if (asking !== undefined) forget(asking);
    },
    credit(stream, acked_offset) {
      by_stream.get(stream)?.out?.acknowledge(acked_offset);
    },
    roundTrip: () => undefined,
    alive: () => Promise.resolve(true),
    close: () => undefined,
  };

  function offer(attempt: Attempt, times: ControlMessageOf<'job.offer'>['deadlines']): void {
    const asking: Asking = { attempt, stream: next_stream++, out: null, relay: null, pumping: false };
    attempt.stream = asking.stream;
    by_attempt.set(keyOf(attempt), asking);
    by_stream.set(asking.stream, asking);
    queueMicrotask(() => {
      if (by_attempt.get(keyOf(attempt)) === asking) ask(asking, times);
    });
  }

  function ask(asking: Asking, times: ControlMessageOf<'job.offer'>['deadlines']): void {
    const { attempt, stream } = asking;
    const { request } = attempt.job;
    const upstream = deps.upstream();
    const { body } = attempt;
    say({ type: 'job.started', job: attempt.job.id, attempt: attempt.number });
    if (by_attempt.get(keyOf(attempt)) !== asking) return;
    if (upstream === null) return say(unusable(attempt));
    const { agent, backend, first_byte_timeout_ms } = upstream;
    const out = new OutStream({ kind: FRAME_KIND.responseBody, writable: () => asking.relay?.resume() });
    const task = {
      backend,
      operation: request.operation,
      body: Buffer.from(body.buffer, body.byteOffset, body.byteLength),
      streaming: request.streaming,
      add_usage: request.add_usage,
      request_id: request.request_id,
      ...(deps.traced && request.traceparent !== null && { traceparent: request.traceparent }),
      via: viaOf([...request.via, deps.pseudonym]),
      deadlines: { ...times, first_byte_ms: first_byte_timeout_ms ?? times.first_byte_ms },
    };
    asking.out = out;
    asking.relay = new Relay(task, out, { agent, clock, deadlines }, (done) =>
      ended(asking, out, done, backend),
    );
    out.join(stream, () => pump(asking, out));
    asking.relay.start();
  }

  /** Hands on what the stream's window lets go. What is credited meanwhile is handed on by the same loop. */
  function pump(asking: Asking, out: OutStream): void {
    if (asking.pumping) return;
    asking.pumping = true;
    try {
      for (let more = true; more; more = out.hasMore()) {
        const taken = out.takeFrame(FRAME_PAYLOAD_MAX_BYTES);
        if (typeof taken === 'string') break;
        heard++;
        takeFrame(dispatcher(), asking.attempt, { ...decodeFrame(taken.header), payload: taken.payload });
        taken.after?.();
      }
    } finally {
      asking.pumping = false;
    }
  }

  function ended(asking: Asking, out: OutStream, done: RelayDone, asked: RelayBackend): void {
    const { attempt } = asking;
    const failure = deps.ended(done, attempt, asked);
    const tell = () => say(resultOf(attempt, out, done, failure));
    if (done.status === null) return tell();
    out.end(failure === undefined ? 'complete' : 'cut', tell);
    // A deadline does not wait until a slow client has taken what came before it.
    if (failure?.code === 'run_timeout' && !out.end_sent) {
      out.discard();
      tell();
    }
  }

  function send(message: ControlMessage): void {
    if (message.type !== 'job.cancel' && message.type !== 'job.abandon') return;
    const asking = by_attempt.get(slotKey(message.job, message.attempt));
    if (asking === undefined) return;
    const started = asking.relay !== null;
    forget(asking);
    queueMicrotask(() => say({ type: 'job.released', job: message.job, attempt: message.attempt, started }));
  }

  function forget(asking: Asking): void {
    by_attempt.delete(keyOf(asking.attempt));
    by_stream.delete(asking.stream);
    asking.relay?.abort();
    asking.out?.discard();
  }

  function say(message: AttemptMessage): void {
    heard++;
    takeAttemptMessage(dispatcher(), node, message);
  }
}

function resultOf(
  attempt: Attempt,
  out: OutStream,
  done: RelayDone,
  failure: RelayDone['failure'],
): AttemptMessage {
  const of = { job: attempt.job.id, attempt: attempt.number };
  if (failure === undefined) {
    const none = { prompt_tokens: 0, completion_tokens: 0, cached_tokens: 0, estimated: true };
    return {
      type: 'job.completed',
      ...of,
      result: { status: done.status ?? 0, length: out.length },
      usage: done.usage ?? none,
      total_ms: done.total_ms,
    };
  }
  const { code, message, retryable, status, retry_after_ms } = failure;
  return {
    type: 'job.failed',
    ...of,
    code,
    message,
    retryable,
    ...(status === undefined ? {} : { status }),
    ...(retry_after_ms === undefined ? {} : { retry_after_ms }),
    ...(done.usage === undefined ? {} : { usage: done.usage }),
  };
}

function unusable(attempt: Attempt): AttemptMessage {
  return {
    type: 'job.failed',
    job: attempt.job.id,
    attempt: attempt.number,
    code: 'backend_error',
    message: 'The upstream provider cannot be asked: its key cannot be unsealed.',
    retryable: true,
  };
}

function keyOf(attempt: Attempt): string {
  return slotKey(attempt.job.id, attempt.number);
}
