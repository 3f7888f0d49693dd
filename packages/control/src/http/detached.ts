import type { Acceptance, Log } from '@flotilla/core';
import {
  type ErrorCode,
  type ErrorDetails,
  FlotillaError,
  type JobAccepted,
  type JobBatchVerdicts,
  isTerminal,
  type JobView,
} from '@flotilla/protocol';
import type { FastifyReply } from 'fastify';
import type { Admission } from '../accounts/admission.ts';
import type { Limits } from '../accounts/limits.ts';
import type { Principal } from '../accounts/principal.ts';
import type { Detached, Submission } from '../detached/detached.ts';
import { type SubmissionRules, readBatch, readSubmission } from '../detached/submissions.ts';
import { LOOK_EVERY_MS, type News } from '../detached/watchers.ts';
import { traceparentOf } from '../telemetry/traces.ts';
import { begunHeaders } from './begun-headers.ts';
import { asFlotillaError, errorAnswer } from './errors.ts';
import type { Handlers } from './routing.ts';

type DetachedRoutes = 'createJob' | 'createJobs' | 'jobEvents';

export interface DetachedRouteDeps {
  detached: Detached;
  rules: SubmissionRules;
  log: Log;
  limits: Pick<Limits, 'admit'>;
  /** The job, as far as this key may see it. @throws FlotillaError `not_found` */
  find(id: string, principal: Principal): Promise<JobView>;
  /** @throws FlotillaError `unavailable` */
  refuseWhenUnable(): void;
}

/** Their bodies are bytes: the requests in them are kept as they came. */
export const RAW_JOB_ROUTES = ['createJob', 'createJobs'] as const;

const NO_BODY = Buffer.alloc(0);
/** Refusals that say no more than that its key has used up what it may; any other one stands by itself. */
const OF_LIMITS = new Set<ErrorCode>(['rate_limited', 'insufficient_credit']);
/** A comment keeps the connection of a job that nothing happens to. */
const QUIET = ': \n\n';
/** Who takes nothing of so much has stopped reading. */
const UNREAD_MOST_BYTES = 256 * 1024;

export function detachedRoutes(deps: DetachedRouteDeps): Pick<Handlers, DetachedRoutes> {
  const { detached, rules, log } = deps;
  return {
    async createJob({ request, principal }) {
      deps.refuseWhenUnable();
      const body = (request.body as Buffer | undefined) ?? NO_BODY;
      const key = request.headers['idempotency-key'];
      const submission = readSubmission(
        rules,
        { principal, request_id: request.id, traceparent: traceparentOf(request.headers) },
        body,
        Array.isArray(key) ? key[0] : key,
      );
      return accept(submission);
    },
    async createJobs({ request, principal }) {
      deps.refuseWhenUnable();
      // Taken for all of them it would make one job of the batch, and ignored it would protect nobody.
      if (request.headers['idempotency-key'] !== undefined)
        throw new FlotillaError(
          'invalid_request',
          'A batch has no Idempotency-Key of its own: give each job its `idempotency_key`.',
        );
      const body = (request.body as Buffer | undefined) ?? NO_BODY;
      const asked = readBatch(
        rules,
        { principal, request_id: request.id, traceparent: traceparentOf(request.headers) },
        body,
      );
      const data = await Promise.all(
        asked.map(async (read) => {
          try {
            return await accept(read());
          } catch (error) {
            // Others of the batch may be committed: whatever is wrong with one is told of that one.
            if (!(error instanceof FlotillaError)) {
              log.error({ request_id: request.id, error }, 'A job of a batch met a fault of ours.');
            }
            return refusal(asFlotillaError(error));
          }
        }),
      );
      return { data };
    },
    async jobEvents({ params: { id }, principal, reply }) {
      await deps.find(id, principal);
      await tellEvents(id, principal, reply);
    },
  };

  async function accept(submission: Submission): Promise<JobAccepted> {
    let admission: Admission;
    try {
      const admitted = deps.limits.admit(submission.principal.key, submission.size);
      // Without a turn of the loop between: the jobs of a batch would stand in each other's way.
      admission = admitted instanceof Promise ? await admitted : admitted;
    } catch (error) {
      if (!(error instanceof FlotillaError) || !OF_LIMITS.has(error.code)) throw error;
      // What was accepted has been paid for: who lost the answer, and sends it again, is told whatever is left.
      const before = await detached.replayed(submission);
      if (before === null) throw error;
      return replayed(before, submission.principal);
    }
    // Nothing is held open for it: how many run at once is for slots and fair share to say.
    admission.release();
    const acceptance = await detached.accept(submission, admission).catch((error: unknown) => {
      admission.undo();
      throw error;
    });
    if ('accepted' in acceptance) return { id: acceptance.accepted, state: 'queued', existing: false };
    admission.undo();
    return replayed(acceptance, submission.principal);
  }

  async function replayed(acceptance: Acceptance, principal: Principal): Promise<JobAccepted> {
    if ('existing' in acceptance) {
      const { id, state } = await deps.find(acceptance.existing, principal);
      return { id, state, existing: true };
    }
    const id = 'conflict' in acceptance ? acceptance.conflict : '';
    throw new FlotillaError(
      'conflict',
      `This Idempotency-Key came with another body before; that one is ${id}. Use a new key for new work.`,
      { more: { job: id } },
    );
  }

  /**
   * First the job as it is, then after each transition, last in its terminal state. Listening begins before the first
   * look, so nothing falls between them; several transitions may be told as one, the last is never left out. A store
   * that cannot be asked ends it with an event that says so.
   */
  async function tellEvents(id: string, principal: Principal, reply: FastifyReply): Promise<void> {
    const { promise: over, resolve: end } = Promise.withResolvers<void>();
    let news: News | null = { type: 'moved' };
    let wake: () => void = () => {};
    let gone = false;
    const unwatch = detached.watchers.watch(id, principal.key.id, (heard) => {
      if (news?.type !== 'moved') news = heard;
      wake();
    });
    const out = reply.raw;
    out.on('close', () => {
      gone = true;
      wake();
    });
    out.on('error', () => undefined);
    reply.hijack();
    out.writeHead(200, {
      ...begunHeaders(reply),
      'content-type': 'text/event-stream; charset=utf-8',
      'x-accel-buffering': 'no',
    });
    void tell().finally(() => {
      unwatch();
      out.end();
      end();
    });
    return over;

    async function tell(): Promise<void> {
      let last = '';
      while (!gone) {
        if (news === null) await woken();
        const heard = news;
        news = null;
        if (heard === null) continue;
        if (heard.type === 'failed') return tellError(heard.error);
        if (heard.type === 'still') out.write(QUIET);
        else {
          const job = await deps.find(id, principal).catch(tellError);
          if (job === undefined) return;
          const text = JSON.stringify(job);
          out.write(text === last ? QUIET : `event: state\ndata: ${text}\n\n`);
          last = text;
          if (isTerminal(job.state)) return;
        }
        if (out.writableLength > UNREAD_MOST_BYTES) return void out.destroy();
      }
    }

    /** Silence would look like a job that nothing happens to; who is told can ask anew. */
    function tellError(error: unknown): undefined {
      out.write(`retry: ${LOOK_EVERY_MS}\nevent: error\ndata: ${errorAnswer(error).body}\n\n`);
    }

    function woken(): Promise<void> {
      return new Promise((resolve) => {
        wake = resolve;
      });
    }
  }
}

/** The job with its result in it, byte for byte. */
export function withResult(job: JobView, result: string): Buffer {
  const text = JSON.stringify(job);
  return Buffer.from(`${text.slice(0, -1)},"result":${result}}`);
}

function refusal(error: FlotillaError): JobBatchVerdicts['data'][number] {
  const { code, message, details } = error;
  const { param, more }: ErrorDetails = details;
  return { error: { code, message, param: param ?? null, ...more } };
}
