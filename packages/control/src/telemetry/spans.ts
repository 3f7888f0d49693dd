import {
  type Attributes,
  type Context,
  createTraceState,
  type HrTime,
  isSpanContextValid,
  ROOT_CONTEXT,
  type Span,
  SpanKind,
  SpanStatusCode,
  trace,
  type Tracer,
} from '@opentelemetry/api';
import type { AttemptRecord } from '@flotilla/core';
import { ERRORS, type Operation } from '@flotilla/protocol';
import type { IncomingHttpHeaders } from 'node:http';
import { type TracedEnd, TRACEPARENT, traceparentOf, type Traces } from './traces.ts';

const GENAI_NAME: Record<Operation, string> = {
  chat: 'chat',
  completions: 'text_completion',
  embeddings: 'embeddings',
};
const MODEL_MAX = 256;

/** @param public_url the only address that spans may tell */
export function tracesOn(tracer: Tracer, public_url: string | undefined, wall_ms: () => number): Traces {
  const server = serverAttributes(public_url);
  return {
    wanted: true,
    request(headers, operation, asked_model, began_at = wall_ms()) {
      const parent = contextOf(headers);
      const asked = asked_model.slice(0, MODEL_MAX);
      const span = begin(parent, `${GENAI_NAME[operation]} ${asked}`, operation, at(began_at), {
        'gen_ai.request.model': asked,
      });
      const { traceId, spanId, traceFlags } = span.spanContext();
      return {
        traceparent: `00-${traceId}-${spanId}-0${traceFlags}`,
        ended: (end) => tell(span, trace.setSpan(parent, span), end),
      };
    },
    refused(headers, operation, code) {
      const now = at(wall_ms());
      const span = begin(contextOf(headers), GENAI_NAME[operation], operation, now, {});
      finish(span, code, ERRORS[code].status, now);
    },
  };

  function tell(span: Span, own: Context, ended: TracedEnd): void {
    const { created_at, usage } = ended;
    span.setAttributes({
      'gen_ai.response.model': ended.model,
      'gen_ai.usage.input_tokens': usage.prompt_tokens,
      'gen_ai.usage.output_tokens': usage.completion_tokens,
      'flotilla.usage.estimated': usage.estimated,
      'flotilla.job': ended.job,
      'flotilla.request_id': ended.request_id,
      'flotilla.attempts': ended.attempts.length,
      ...(ended.detached === true && { 'flotilla.detached': true }),
      ...(ended.first_byte_ms !== null && { 'flotilla.first_byte_ms': ended.first_byte_ms }),
    });
    const waited_ms = ended.queue_ms ?? ended.total_ms;
    tracer.startSpan('queue', { startTime: at(created_at) }, own).end(at(created_at, waited_ms));
    for (const attempt of ended.attempts) tellAttempt(own, attempt, ended);
    finish(span, ended.outcome, ended.status, at(created_at, ended.total_ms));
  }

  function tellAttempt(own: Context, attempt: AttemptRecord, ended: TracedEnd): void {
    const over = ended.created_at + ended.total_ms;
    const span = tracer.startSpan(
      `attempt ${attempt.attempt}`,
      {
        kind: SpanKind.CLIENT,
        startTime: at(attempt.offered_at),
        // Not the backend: where its owner named none, its id is its address.
        attributes: {
          'flotilla.attempt': attempt.attempt,
          'flotilla.outcome': attempt.outcome,
          ...(attempt.node !== null && { 'flotilla.node': attempt.node }),
          ...(attempt.provider !== null && { 'flotilla.provider': attempt.provider }),
        },
      },
      own,
    );
    if (attempt.started_at !== null) span.addEvent('started', at(attempt.started_at));
    if (attempt === ended.attempts.at(-1) && ended.first_byte_ms !== null)
      span.addEvent('first byte', at(ended.created_at, ended.first_byte_ms));
    // What a client left behind is `open` until its node has let go of it; for this request it is over.
    if (attempt.outcome !== 'succeeded' && attempt.outcome !== 'open') {
      span.setAttribute('error.type', attempt.code ?? attempt.outcome);
      span.setStatus({ code: SpanStatusCode.ERROR });
    }
    span.end(at(attempt.ended_at ?? over));
  }

  function begin(
    parent: Context,
    name: string,
    operation: Operation,
    startTime: HrTime,
    attributes: Attributes,
  ): Span {
    const common = {
      'gen_ai.operation.name': GENAI_NAME[operation],
      'gen_ai.provider.name': 'flotilla',
      ...server,
    };
    return tracer.startSpan(
      name,
      { kind: SpanKind.SERVER, startTime, attributes: { ...common, ...attributes } },
      parent,
    );
  }
}

function finish(span: Span, outcome: string, status: number, end: HrTime): void {
  span.setAttribute('http.response.status_code', status);
  if (outcome !== 'succeeded') {
    span.setAttribute('error.type', outcome);
    // What the client did wrong is no failure of the server.
    if (status >= 500) span.setStatus({ code: SpanStatusCode.ERROR });
  }
  span.end(end);
}

function serverAttributes(public_url: string | undefined): Attributes {
  if (public_url === undefined) return {};
  const { hostname, port, protocol } = new URL(public_url);
  const usual = protocol === 'https:' ? 443 : 80;
  return { 'server.address': hostname, 'server.port': port === '' ? usual : Number(port) };
}

/** W3C trace context: the client's trace goes on here. What is no such header begins a trace of its own. */
function contextOf(headers: IncomingHttpHeaders): Context {
  const parts = TRACEPARENT.exec(traceparentOf(headers) ?? '');
  if (parts === null) return ROOT_CONTEXT;
  const [, traceId = '', spanId = '', flags = ''] = parts;
  const state = headers['tracestate'];
  const remote = {
    traceId,
    spanId,
    traceFlags: Number.parseInt(flags, 16) & 1,
    isRemote: true,
    ...(typeof state === 'string' && state.length <= 512 && { traceState: createTraceState(state) }),
  };
  return isSpanContextValid(remote) ? trace.setSpanContext(ROOT_CONTEXT, remote) : ROOT_CONTEXT;
}

function at(wall_ms: number, later_ms = 0): HrTime {
  const all = wall_ms + later_ms;
  const seconds = Math.floor(all / 1000);
  return [seconds, Math.round((all - seconds * 1000) * 1e6)];
}
