import type { AttemptRecord } from '@flotilla/core';
import type { ErrorCode, Operation, TokenUsage } from '@flotilla/protocol';
import type { IncomingHttpHeaders } from 'node:http';

/**
 * Spans of inference requests, with the names of the GenAI conventions. A request's own span begins with it, so that
 * whoever is asked can be in the trace below it; what is in it, and its parts, are told when the request is over, out of
 * what its record has anyway. Where no traces are wanted, nothing of this is done. No span holds a prompt, an answer, or an
 * address of a node.
 */
export interface Traces {
  /** Whether anybody wants them: what costs a look-up is asked for only then. */
  readonly wanted: boolean;
  /** A request becomes a job. @param began_at wall-clock time, where it is not now */
  request(
    headers: IncomingHttpHeaders,
    operation: Operation,
    asked_model: string,
    began_at?: number,
  ): TracedRequest;
  /** It was refused before it became one. */
  refused(headers: IncomingHttpHeaders, operation: Operation, code: ErrorCode): void;
}

export interface TracedRequest {
  /** What those who are asked for it are given: its own span, or else what the client sent; null: neither. */
  readonly traceparent: string | null;
  /** It is over. */
  ended(end: TracedEnd): void;
}

export interface TracedEnd {
  job: string;
  /** Nobody waited for it on a connection. */
  detached?: true;
  request_id: string;
  /** What the model is called where it ran. */
  model: string;
  /** `succeeded`, or the error code it ended with. */
  outcome: string;
  status: number;
  usage: TokenUsage;
  attempts: readonly AttemptRecord[];
  /** Wall-clock time of its acceptance; the rest is measured from there. */
  created_at: number;
  /** Null: it was never offered to a node. */
  queue_ms: number | null;
  first_byte_ms: number | null;
  total_ms: number;
}

const NOTHING = () => undefined;
export const NO_TRACES: Traces = {
  wanted: false,
  request: (headers) => ({ traceparent: traceparentOf(headers), ended: NOTHING }),
  refused: NOTHING,
};

export const TRACEPARENT = /^(?!ff)[\da-f]{2}-([\da-f]{32})-([\da-f]{16})-([\da-f]{2})(?:-|$)/;
const TRACEPARENT_MAX = 128;

/** As the client sent it; null: none, or none that can be read. */
export function traceparentOf(headers: IncomingHttpHeaders): string | null {
  const given = headers['traceparent'];
  return typeof given === 'string' && given.length <= TRACEPARENT_MAX && TRACEPARENT.test(given)
    ? given
    : null;
}
