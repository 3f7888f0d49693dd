import { type Clock, type Random, type Settlement, matchesModel } from '@flotilla/core';
import { FlotillaError, type Operation, makeId } from '@flotilla/protocol';
import type { FastifyReply, FastifyRequest } from 'fastify';
import type { Admission, Principal } from '../accounts/principal.ts';
import type { ActiveJob, JobRequest } from '../dispatch/active-job.ts';
import type { Attempt } from '../dispatch/attempt.ts';
import type { Dispatcher } from '../dispatch/dispatcher.ts';
import { jobRecord } from '../dispatch/job-record.ts';
import { type Roster, isServed } from '../fleet/roster.ts';
import type { Metrics } from '../telemetry/metrics.ts';
import { createAffinity } from './affinity.ts';
import { Answer, type AnswerOutcome } from './answer.ts';
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
  /** No new work: the process is stopping. Resolves when what runs has ended, or at the deadline. */
  drain(deadline_ms: number): Promise<void>;
}

export interface GatewayDeps {
  clock: Clock;
  random: Random;
  replica: string;
  roster: Roster;
  dispatcher: Dispatcher;
  metrics: Metrics;
  settlements: Settlements;
  admit(principal: Principal): Admission;
  stall_ms: number;
}

/** The batched writer of finished requests. */
interface Settlements {
  readonly failing_since_ms: number | null;
  add(row: Settlement, deadline_ms: number): Promise<unknown>;
}

/** A success waits this long for its record. */
const SETTLE_WITHIN_MS = 15_000;
/** A store that has failed this long makes new work pointless. */
const STORE_FAILING_MS = 1000;
const STORE_RETRY_MS = 2000;

export function createGateway(deps: GatewayDeps): Gateway {
  const { clock, random, roster, dispatcher, metrics, settlements } = deps;
  const affinity = createAffinity();
  let draining = false;
  let idle: (() => void) | null = null;
  let open = 0;

  return { serve, models, drain };

  async function serve(
    request: FastifyRequest,
    reply: FastifyReply,
    operation: Operation,
    principal: Principal,
  ): Promise<void> {
    refuseWhenUnable();
    const body = request.body as Buffer;
    const read = readInferenceRequest(body, operation, request.headers);
    const model = permittedModel(read.model, principal);
    const admission = deps.admit(principal);
    try {
      await answer(
        request,
        reply,
        operation,
        principal,
        admission,
        { ...read, model },
        bodyFor(body, read, model),
      );
    } finally {
      admission.release();
    }
  }

  function answer(
    request: FastifyRequest,
    reply: FastifyReply,
    operation: Operation,
    principal: Principal,
    admission: Admission,
    read: InferenceRequest,
    body: Uint8Array,
  ): Promise<void> {
    const { key } = principal;
    const { promise, resolve } = Promise.withResolvers<void>();
    const sink = new Answer(read.streaming, {
      clock,
      stall_ms: deps.stall_ms,
      settle: (job, outcome) => settle(job, outcome, operation),
      gone: (job, reason) => dispatcher.cancel(job, reason),
      handed: (job) => dispatcher.handed(job),
      credit: (attempt, offset) => dispatcher.credit(attempt, offset),
      position: (job) => (job.queued ? dispatcher.lanes.position(job) : null),
      headers: (job, attempt) => headersOf(job, attempt, principal, admission),
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
      affinity: read.affinity === null ? null : affinity.node(key.id, read.affinity),
      priority: 0,
    };
    const active = dispatcher.submit(job, sink);
    open++;
    metrics.requestStarted();
    reply.hijack();
    sink.begin(active, reply.raw);
    return promise;
  }

  function settle(job: ActiveJob, answered: AnswerOutcome, operation: Operation): Promise<unknown> {
    const { end, outcome, status, usage, first_byte_ms, finished_ms } = answered;
    const { request } = job;
    const node = job.last?.node.id ?? job.current?.node.id ?? null;
    if (request.session !== null && outcome === 'succeeded' && node !== null) {
      affinity.served(request.key, request.session, node);
    }
    metrics.requestEnded({ operation, model: request.model, outcome, total_ms: finished_ms, first_byte_ms });
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
        node,
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
    return settlements.add(settlement, clock.now_ms() + SETTLE_WITHIN_MS);
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
    const model = roster.resolve(asked);
    const permitted = matchesModel(key.allowed_models, asked) || matchesModel(key.allowed_models, model);
    if (permitted && isServed(roster.spots(model), key.node_labels)) return model;
    throw new FlotillaError(
      'model_not_found',
      `The model ${JSON.stringify(asked)} does not exist, or this key may not use it. GET /v1/models lists what it may.`,
      { param: 'model' },
    );
  }

  function headersOf(
    job: ActiveJob,
    attempt: Attempt | null,
    principal: Principal,
    admission: Admission,
  ): Record<string, string> {
    const headers: Record<string, string> = {
      ...admission.headers,
      'x-request-id': job.request.request_id,
      'x-flotilla-attempts': String(job.kernel.attempt),
      'x-flotilla-queue-ms': String(Math.round((job.offered_ms ?? clock.now_ms()) - job.created_ms)),
    };
    if (attempt !== null && principal.has('nodes:read'))
      headers['x-flotilla-node'] = attempt.node.record.name;
    return headers;
  }

  function models({ key }: Principal): { id: string; created: number }[] {
    const found: { id: string; created: number }[] = [];
    for (const model of roster.models()) {
      const spots = roster
        .spots(model)
        .filter(({ node }) => node.state === 'online' || node.state === 'suspect');
      if (!matchesModel(key.allowed_models, model) || !isServed(spots, key.node_labels)) continue;
      const since = Math.min(...spots.map(({ node }) => node.record.created_at));
      found.push({ id: model, created: Math.floor(since / 1000) });
    }
    return found.sort((a, b) => (a.id < b.id ? -1 : 1));
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
