import {
  type Clock,
  type Log,
  type Random,
  type Settlement,
  cameThrough,
  matchesModel,
} from '@flotilla/core';
import { FlotillaError, type Operation, makeId } from '@flotilla/protocol';
import type { FastifyReply, FastifyRequest } from 'fastify';
import type { IncomingHttpHeaders } from 'node:http';
import type { Admission } from '../accounts/admission.ts';
import type { Limits } from '../accounts/limits.ts';
import type { Principal } from '../accounts/principal.ts';
import type { ActiveJob, JobRequest } from '../dispatch/active-job.ts';
import type { Attempt } from '../dispatch/attempt.ts';
import type { Dispatcher } from '../dispatch/dispatcher.ts';
import { jobRecord } from '../dispatch/job-record.ts';
import type { Metrics } from '../telemetry/metrics.ts';
import type { TracedRequest, Traces } from '../telemetry/traces.ts';
import { type ModelRoutes, mayUse } from '../upstreams/model-routes.ts';
import { begunHeaders } from '../http/begun-headers.ts';
import { createAffinity } from './affinity.ts';
import { Answer, type AnswerOutcome } from './answer.ts';
import type { HeaderList } from './client.ts';
import { type InferenceRequest, readInferenceRequest, withModel } from './inference-request.ts';

/**
 * The OpenAI surface: from a request's bytes to the last piece of its answer. Reads neither store nor bus on the way
 * in; the one write is the settlement, which a success waits for.
 */
export interface Gateway {
  /** Takes over `reply.raw`; resolves when the answer is over. The body is a Buffer that nobody else changes. */
  serve(
    request: FastifyRequest,
    reply: FastifyReply,
    operation: Operation,
    principal: Principal,
  ): Promise<void>;
  models(principal: Principal): { id: string; created: number }[];
  /**
   * The control planes that a request came through before this one.
   * @throws FlotillaError `loop_detected` where this one is among them
   */
  hops(headers: IncomingHttpHeaders): string[];
  /**
   * The model that a name stands for, where this key may use it, whoever could serve it now.
   * @throws FlotillaError `model_not_found`
   */
  permittedModel(asked: string, principal: Principal): string;
  /** No new work: the process is stopping. Resolves when what runs has ended, or at the deadline. */
  drain(deadline_ms: number): Promise<void>;
}

export interface GatewayDeps {
  clock: Clock;
  random: Random;
  log: Log;
  replica: string;
  /** Its name in `Via`, the same on each of several replicas. */
  pseudonym: string;
  routes: ModelRoutes;
  dispatcher: Dispatcher;
  metrics: Metrics;
  traces: Pick<Traces, 'request'>;
  settlements: Settlements;
  admit: Limits['admit'];
  stall_ms: number;
}

/** The batched writer of finished requests. */
interface Settlements {
  readonly failing_since_ms: number | null;
  add(row: Settlement, deadline_ms: number): Promise<unknown>;
}

/** A success waits this long for its record. */
const SETTLE_WITHIN_MS = 15_000;
/** Nobody waits for the record of anything else; there are few, since without its store a replica takes no new work. */
const RECORD_WITHIN_MS = 24 * 3_600_000;
/** A store that has failed this long makes new work pointless. */
const STORE_FAILING_MS = 1000;
const STORE_RETRY_MS = 2000;

export function createGateway(deps: GatewayDeps): Gateway {
  const { clock, random, log, routes, dispatcher, metrics, settlements } = deps;
  const affinity = createAffinity();
  let draining = false;
  let idle: (() => void) | null = null;
  let open = 0;

  return { serve, models, hops, permittedModel, drain };

  async function serve(
    request: FastifyRequest,
    reply: FastifyReply,
    operation: Operation,
    principal: Principal,
  ): Promise<void> {
    const via = hops(request.headers);
    refuseWhenUnable();
    const body = request.body as Buffer;
    const read = readInferenceRequest(body, operation, request.headers);
    const model = permittedModel(read.model, principal);
    const admitted = deps.admit(principal.key, read.size);
    const admission = admitted instanceof Promise ? await admittedLater(admitted) : admitted;
    try {
      await answer(
        request,
        reply,
        operation,
        principal,
        admission,
        { ...read, model, asked: read.model, via },
        bodyFor(body, read, model),
      );
    } catch (error) {
      admission.undo();
      throw error;
    } finally {
      admission.release();
    }
  }

  /** While it waited for limits that replicas share, this one may have begun to stop. */
  async function admittedLater(admitted: Promise<Admission>): Promise<Admission> {
    const admission = await admitted;
    try {
      refuseWhenUnable();
    } catch (error) {
      admission.undo();
      admission.release();
      throw error;
    }
    return admission;
  }

  function answer(
    request: FastifyRequest,
    reply: FastifyReply,
    operation: Operation,
    principal: Principal,
    admission: Admission,
    read: InferenceRequest & { asked: string; via: readonly string[] },
    body: Uint8Array,
  ): Promise<void> {
    const { key } = principal;
    const traced = deps.traces.request(request.headers, operation, read.asked);
    const { promise, resolve } = Promise.withResolvers<void>();
    const sink = new Answer(read.streaming, {
      clock,
      stall_ms: deps.stall_ms,
      commit: (job, outcome) =>
        settle(job, outcome, operation, admission, SETTLE_WITHIN_MS).then(() => {
          admission.recorded();
          ended(job, outcome, operation, traced);
        }),
      record(job, outcome) {
        ended(job, outcome, operation, traced);
        settle(job, outcome, operation, admission, RECORD_WITHIN_MS).then(
          () => admission.recorded(),
          (error: unknown) => {
            admission.forget();
            log.error({ error, job: job.id, outcome: outcome.outcome }, 'The record of a request was lost.');
          },
        );
      },
      gone: (job, reason) => dispatcher.cancel(job, reason),
      handed: (job) => dispatcher.handed(job),
      credit: (attempt, offset) => dispatcher.credit(attempt, offset),
      position: (job) => (job.queued ? dispatcher.lanes.position(job) : null),
      headers: (job, attempt) => headersOf(reply, job, attempt, principal, admission),
      over: () => {
        open--;
        resolve();
        if (open === 0) idle?.();
      },
    });
    const job: JobRequest = {
      id: makeId('job', clock.wall_ms(), random.bytes(10)),
      request_id: request.id,
      key: key.id,
      model: read.model,
      operation,
      body,
      streaming: read.streaming,
      add_usage: read.add_usage,
      labels: key.node_labels,
      session: read.affinity,
      via: read.via,
      traceparent: traced.traceparent,
      affinity: read.affinity === null ? null : affinity.node(key.id, read.affinity),
      priority: 0,
    };
    const active = submit(job, sink, admission);
    open++;
    metrics.requestStarted();
    reply.hijack();
    sink.begin(active, reply.raw);
    return promise;
  }

  /** What is refused before it was work costs its key nothing, and says so in the headers of every reply. */
  function submit(job: JobRequest, sink: Answer, admission: Admission): ActiveJob {
    try {
      return dispatcher.submit(job, sink);
    } catch (error) {
      if (!(error instanceof FlotillaError)) throw error;
      const headers = { ...admission.undo(), 'x-flotilla-attempts': '0', 'x-flotilla-queue-ms': '0' };
      throw new FlotillaError(error.code, error.message, { ...error.details, headers });
    }
  }

  function ended(job: ActiveJob, answered: AnswerOutcome, operation: Operation, traced: TracedRequest): void {
    const { outcome, status, usage, first_byte_ms, finished_ms: total_ms } = answered;
    const { id, model, request_id } = job.request;
    metrics.requestEnded({ operation, model, outcome, total_ms, first_byte_ms, usage });
    traced.ended({
      job: id,
      request_id,
      model,
      outcome,
      status,
      usage,
      first_byte_ms,
      total_ms,
      attempts: job.stories,
      created_at: job.created_at,
      queue_ms: job.offered_ms === null ? null : job.offered_ms - job.created_ms,
    });
  }

  function settle(
    job: ActiveJob,
    answered: AnswerOutcome,
    operation: Operation,
    admission: Admission,
    within_ms: number,
  ): Promise<unknown> {
    admission.settle(answered.usage, job.created_at);
    const { end, outcome, status, usage, first_byte_ms, finished_ms } = answered;
    const { request } = job;
    const server = (job.last ?? job.current)?.node ?? null;
    if (request.session !== null && outcome === 'succeeded' && server !== null) {
      affinity.served(request.key, request.session, server.id);
    }
    const settlement: Settlement = {
      job: jobRecord(job, deps.replica, end.state, {
        code: end.code,
        message: end.message,
        at: clock.wall_ms(),
      }),
      attempts: job.stories,
      usage: {
        job: job.id,
        request_id: request.request_id,
        key: request.key,
        model: request.model,
        operation,
        node: server?.is_provider === false ? server.id : null,
        provider: server?.is_provider === true ? server.id : null,
        outcome,
        status,
        attempts: job.stories.length,
        ...usage,
        queue_ms: Math.round((job.offered_ms ?? clock.now_ms()) - job.created_ms),
        first_byte_ms: first_byte_ms === null ? null : Math.round(first_byte_ms),
        total_ms: Math.round(finished_ms),
        created_at: job.created_at,
      },
    };
    return settlements.add(settlement, clock.now_ms() + within_ms);
  }

  function refuseWhenUnable(): void {
    if (draining) {
      throw new FlotillaError('unavailable', 'This control plane is stopping.', {
        retry_after_ms: STORE_RETRY_MS,
      });
    }
    const since = settlements.failing_since_ms;
    if (since !== null && clock.now_ms() - since >= STORE_FAILING_MS) {
      throw new FlotillaError(
        'unavailable',
        'The store does not take records now, so no new work is accepted.',
        {
          retry_after_ms: STORE_RETRY_MS,
        },
      );
    }
  }

  /** What a key may not use does not exist for it. */
  function permittedModel(asked: string, { key }: Principal): string {
    const model = routes.resolve(asked);
    if (model !== null && mayUse(key.allowed_models, asked, model) && routes.serves(model, key.node_labels)) {
      return model;
    }
    throw new FlotillaError(
      'model_not_found',
      `The model ${JSON.stringify(asked)} does not exist, or this key may not use it. GET /v1/models lists what it may.`,
      { param: 'model' },
    );
  }

  function headersOf(
    reply: FastifyReply,
    job: ActiveJob,
    attempt: Attempt | null,
    principal: Principal,
    admission: Admission,
  ): HeaderList {
    const list: HeaderList = [];
    for (const headers of [begunHeaders(reply), admission.headers])
      for (const name in headers) list.push(name, headers[name]!);
    const queue_ms = Math.round((job.offered_ms ?? clock.now_ms()) - job.created_ms);
    list.push('x-flotilla-attempts', String(job.kernel.attempt), 'x-flotilla-queue-ms', String(queue_ms));
    if (attempt !== null && principal.has('nodes:read')) {
      const { is_provider, record } = attempt.node;
      list.push(is_provider ? 'x-flotilla-provider' : 'x-flotilla-node', record.name);
    }
    return list;
  }

  function models({ key }: Principal): { id: string; created: number }[] {
    return routes
      .offered((name) => matchesModel(key.allowed_models, name), key.node_labels)
      .map(({ id, created_at }) => ({ id, created: Math.floor(created_at / 1000) }))
      .sort((a, b) => (a.id < b.id ? -1 : 1));
  }

  function hops({ via }: IncomingHttpHeaders): string[] {
    const before = cameThrough(via);
    if (!before.includes(deps.pseudonym)) return before;
    throw new FlotillaError(
      'loop_detected',
      'This request has come through this control plane already: a provider that it asked leads back here.',
    );
  }

  async function drain(deadline_ms: number): Promise<void> {
    draining = true;
    if (open === 0) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    idle = resolve;
    const timer = clock.after(deadline_ms, resolve);
    await promise;
    timer.cancel();
    for (const job of [...dispatcher.jobs.values()])
      dispatcher.cancel(job, 'The control plane is stopping.', 'unavailable');
  }
}

/** The bytes as they came, unless the model has a fuller name on its nodes. */
function bodyFor(body: Uint8Array, read: InferenceRequest, model: string): Uint8Array {
  return model === read.model ? body : withModel(body, model);
}
