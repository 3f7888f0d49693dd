import { STREAM_WINDOW_BYTES } from '@flotilla/core';
import { END_OUTCOME, FRAME_KIND, type ErrorCode, type Frame, type NodeMessageOf } from '@flotilla/protocol';
import type { FleetNode } from '../fleet/node.ts';
import { slotKey } from '@flotilla/core';
import { type Attempt, fenceOf } from './attempt.ts';
import { type Dispatcher, backOff, neverOn } from './dispatcher.ts';

/**
 * What a node says of its attempts, turned into events of the job's rules. An attempt is found by the connection's own
 * node, never by what the message claims, so a node that speaks of another's job is answered `stale`.
 */
export type AttemptMessage = NodeMessageOf<
  | 'job.accepted'
  | 'job.rejected'
  | 'job.started'
  | 'job.progress'
  | 'job.completed'
  | 'job.failed'
  | 'job.released'
>;

/** What a node may answer a client with: of who may ask and what is there, it decides nothing. */
const NODE_CODES: readonly ErrorCode[] = ['invalid_request', 'backend_error', 'run_timeout'];
/** A provider is asked from here: that it leads back here is this control plane's own word. */
const PROVIDER_CODES: readonly ErrorCode[] = [...NODE_CODES, 'loop_detected'];
/** What a node would say of the job for ever: it is not asked again. */
const FINAL_REJECTIONS = new Set(['body_too_large', 'unsupported_kind']);

export function takeAttemptMessage(dispatcher: Dispatcher, node: FleetNode, message: AttemptMessage): void {
  const attempt = node.attempts.get(slotKey(message.job, message.attempt));
  if (attempt === undefined) return takeUnknown(dispatcher, node, message);
  if ('usage' in message && message.usage !== undefined) attempt.usage ??= message.usage;
  switch (message.type) {
    case 'job.accepted':
      return acceptAttempt(dispatcher, attempt);
    case 'job.started':
      return startAttempt(dispatcher, attempt);
    case 'job.progress':
      return;
    case 'job.rejected':
      if (FINAL_REJECTIONS.has(message.reason)) neverOn(attempt.job, node.id);
      dispatcher.feed(attempt, {
        type: 'rejected',
        fence: fenceOf(attempt),
        reason: message.reason,
        retry_delay_ms: backOff(dispatcher, attempt),
      });
      return dispatcher.settleSlot(attempt);
    case 'job.completed':
      return completed(dispatcher, attempt, message);
    case 'job.failed':
      return failed(dispatcher, attempt, message);
    case 'job.released':
      // Where it was stopped at once, the word that it had begun may never have been said.
      attempt.asked ||= message.started;
      if (attempt.job.current !== attempt) attempt.job.owner.told(attempt);
      dispatcher.feed(attempt, {
        type: 'released',
        fence: fenceOf(attempt),
        retry_delay_ms: backOff(dispatcher, attempt),
      });
      return dispatcher.settleSlot(attempt);
  }
}

/** The node has it, and may still be receiving the request. */
export function acceptAttempt(dispatcher: Dispatcher, attempt: Attempt): void {
  attempt.answer_timer?.cancel();
  if (attempt.phase !== 'offered') return;
  attempt.phase = 'accepted';
  dispatcher.feed(attempt, { type: 'accepted', fence: fenceOf(attempt) });
}

/** The node has asked its backend; said once, implied by any output. */
export function startAttempt(dispatcher: Dispatcher, attempt: Attempt): void {
  attempt.answer_timer?.cancel();
  if (attempt.phase === 'over' || attempt.phase === 'started') return;
  attempt.phase = 'started';
  attempt.asked = true;
  attempt.story.started_at = dispatcher.deps.clock.wall_ms();
  dispatcher.feed(attempt, { type: 'started', fence: fenceOf(attempt) });
  attempt.job.sink.started(attempt);
}

function completed(dispatcher: Dispatcher, attempt: Attempt, message: NodeMessageOf<'job.completed'>): void {
  const { result, usage } = message;
  const current = attempt.job.current === attempt;
  if (!current) attempt.job.owner.told(attempt);
  const fault = current ? wholeOrFault(attempt, { ...result, usage }) : null;
  const outcome =
    fault === null
      ? dispatcher.feed(
          attempt,
          { type: 'completed', fence: fenceOf(attempt), digest: `${result.status}:${result.length}` },
          { ...result, usage },
        )
      : fail(dispatcher, attempt, 'backend_error', fault, true);
  attempt.job.owner.acknowledge(attempt, outcome ?? 'stale');
  dispatcher.settleSlot(attempt);
}

/** A success must be whole: every byte of it here, and what the client asked for in it. */
function wholeOrFault(
  attempt: Attempt,
  result: Parameters<Attempt['job']['sink']['fault']>[0],
): string | null {
  const { ended } = attempt;
  if (!attempt.head || ended === null || !ended.complete || ended.length !== result.length) {
    return 'the answer did not arrive whole';
  }
  return attempt.job.sink.fault(result);
}

function failed(dispatcher: Dispatcher, attempt: Attempt, message: NodeMessageOf<'job.failed'>): void {
  const codes = attempt.node.is_provider ? PROVIDER_CODES : NODE_CODES;
  const code = codes.find((known) => known === message.code) ?? 'backend_error';
  if (attempt.job.current !== attempt) attempt.job.owner.told(attempt);
  const outcome = fail(dispatcher, attempt, code, message.message, message.retryable, message.retry_after_ms);
  attempt.job.owner.acknowledge(attempt, outcome ?? 'stale');
  dispatcher.settleSlot(attempt);
}

function fail(
  dispatcher: Dispatcher,
  attempt: Attempt,
  code: ErrorCode,
  message: string,
  retryable: boolean,
  asked_ms?: number,
) {
  return dispatcher.feed(attempt, {
    type: 'failed',
    fence: fenceOf(attempt),
    code,
    message,
    retryable,
    retry_delay_ms: backOff(dispatcher, attempt, asked_ms),
  });
}

/** Nothing here knows the attempt: a result is too old, a release may free a slot the node came back with. */
function takeUnknown(dispatcher: Dispatcher, node: FleetNode, message: AttemptMessage): void {
  const { job, attempt } = message;
  if ('usage' in message && message.usage !== undefined)
    dispatcher.stores.told({ job, attempt, node: node.id, ...message.usage });
  if (message.type === 'job.completed' || message.type === 'job.failed') {
    node.link?.send({ type: 'result.ack', job, attempt, outcome: 'stale' });
    dispatcher.settleUnknown(node, job, attempt);
  } else if (message.type === 'job.released' || message.type === 'job.rejected') {
    dispatcher.settleUnknown(node, job, attempt);
  } else {
    node.link?.send({ type: 'job.abandon', job, attempt, reason: 'this attempt is not known, or over' });
  }
}

/** Response frames. Repeated bytes are trimmed; a hole or an overrun window is the node's fault and ends the attempt. */
export function takeFrame(dispatcher: Dispatcher, attempt: Attempt, frame: Frame): void {
  if (attempt.phase === 'over' || attempt.broken || attempt.job.current !== attempt) return;
  if (attempt.phase !== 'started') startAttempt(dispatcher, attempt);
  switch (frame.kind) {
    case FRAME_KIND.responseHead: {
      if (attempt.head) return;
      const head = readHead(frame.payload);
      if (head === undefined) return breach(dispatcher, attempt, 'the head of the answer is unreadable');
      attempt.head = true;
      attempt.job.sink.head(attempt, head.status, head.headers);
      return;
    }
    case FRAME_KIND.responseBody: {
      const { offset, payload } = frame;
      if (attempt.ended !== null)
        return breach(dispatcher, attempt, 'the node sent more of the answer after its end');
      if (!attempt.head || offset > attempt.received)
        return breach(dispatcher, attempt, 'a part of the answer is missing');
      const fresh = payload.subarray(attempt.received - offset);
      if (offset + payload.byteLength <= attempt.received) return;
      if (attempt.received + fresh.byteLength - attempt.credited > STREAM_WINDOW_BYTES) {
        return breach(dispatcher, attempt, 'the node sent more than the window allows');
      }
      attempt.received += fresh.byteLength;
      attempt.job.sink.body(attempt, fresh);
      return;
    }
    case FRAME_KIND.end:
      if (frame.offset !== attempt.received)
        return breach(dispatcher, attempt, 'a part of the answer is missing');
      attempt.ended = { length: frame.offset, complete: frame.payload[0] === END_OUTCOME.complete };
      return;
    default:
      return breach(dispatcher, attempt, `frames of kind ${frame.kind} are not a node's to send`);
  }
}

/** The node broke the link's rules for this attempt: it is told to stop, and the job goes on elsewhere if it can. */
function breach(dispatcher: Dispatcher, attempt: Attempt, message: string): void {
  const { job, number } = attempt;
  attempt.link?.send({ type: 'job.abandon', job: job.id, attempt: number, reason: message });
  // Detached work waits for the node's word that it has stopped, or for the end of its lease.
  if (job.kernel.policy.attached) fail(dispatcher, attempt, 'backend_error', message, true);
  else attempt.broken = true;
}

function readHead(payload: Uint8Array): { status: number; headers: [string, string][] } | undefined {
  try {
    const head: unknown = JSON.parse(
      Buffer.from(payload.buffer, payload.byteOffset, payload.byteLength).toString(),
    );
    if (typeof head !== 'object' || head === null) return undefined;
    const { status, headers } = head as { status?: unknown; headers?: unknown };
    if (!Number.isInteger(status) || (status as number) < 200 || (status as number) > 599) return undefined;
    const pairs: unknown[] = Array.isArray(headers) ? headers : Object.entries(headers ?? {});
    // Of a name that is there twice the last one, as in a JSON object: they are written as they stand here.
    return { status: status as number, headers: [...new Map(pairs.filter(isHeader))] };
  } catch {
    return undefined;
  }
}

/** What a client gets of a backend's headers; no node chooses others, or writes what HTTP cannot carry. */
const PASSED_HEADER = /^(?:content-type|retry-after|retry-after-ms|openai-[a-z0-9-]{1,64})$/;
const HEADER_TEXT = /^[\t\x20-\x7e\x80-\xff]{0,4096}$/;

function isHeader(pair: unknown): pair is [string, string] {
  if (!Array.isArray(pair) || pair.length !== 2) return false;
  const [name, value] = pair as unknown[];
  return (
    typeof name === 'string' &&
    PASSED_HEADER.test(name) &&
    typeof value === 'string' &&
    HEADER_TEXT.test(value)
  );
}
