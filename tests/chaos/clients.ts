import { setTimeout as pause } from 'node:timers/promises';
import type { JobBatchVerdicts, JobView } from '@flotilla/protocol';
import { MODELS, requestOf, saidIn } from './answers.ts';
import type { Fleet, Replica } from './fleet.ts';
import type { AnswerEnd } from './history.ts';

/** Those who ask, each of whichever replica comes next, and what they saw. They go on until `over`. */
export interface Clients {
  /** Every job whose acknowledgement came back, by its id. */
  readonly acknowledged: Map<string, number>;
  /** Batches of jobs until so many are acknowledged; what nobody answers is sent again, to another. */
  submit(jobs: number, pace: { batch: number; every_ms: number }): Promise<void>;
  /** Reads jobs, open and ended ones, again and again. */
  read(): Promise<void>;
  /** Cancels one now and then. */
  cancel(every_ms: number): Promise<void>;
  /** Waits for answers, one after the other. */
  ask(work: 'stream' | 'whole'): Promise<void>;
}

const CALL_WITHIN_MS = 8000;
/** Longer than anything that an answer may wait for. */
const ANSWER_WITHIN_MS = 60_000;
/** Of those who were refused. */
const AGAIN_AFTER_MS = 300;
const READ_EVERY_MS = 25;

export function openClients(fleet: Fleet, random: () => number, over: AbortSignal): Clients {
  const { history, replicas } = fleet;
  const acknowledged = new Map<string, number>();
  const ids: string[] = [];
  let asked = 0;
  return { acknowledged, submit, read, cancel, ask };

  async function submit(
    jobs: number,
    { batch, every_ms }: { batch: number; every_ms: number },
  ): Promise<void> {
    const began_ms = performance.now();
    for (let from = 0; from < jobs; from += batch) {
      const count = Math.min(batch, jobs - from);
      while (!(await submitBatch(from, count))) await pause(AGAIN_AFTER_MS);
      // Some clients do not know that they were answered.
      if (random() < 0.05) await submitBatch(from, count);
      // After a time in which nobody took any, they catch up.
      const due_ms = began_ms + (from / batch + 1) * every_ms;
      await pause(Math.max(0, due_ms - performance.now()));
    }
  }

  async function submitBatch(from: number, count: number): Promise<boolean> {
    const to = any();
    const jobs = Array.from({ length: count }, (_, place) => ({
      model: MODELS.job,
      request: requestOf('job', from + place),
      idempotency_key: `job-${from + place}`,
    }));
    history.add({ type: 'submitted', to: to.name, from, count });
    const reply = await call<JobBatchVerdicts>(to, 'POST', '/api/v1/jobs/batch', { jobs });
    if (reply === undefined) return false;
    const taken = reply.data.flatMap((verdict, place): [number, string][] =>
      'id' in verdict ? [[from + place, verdict.id]] : [],
    );
    history.add({ type: 'acknowledged', by: to.name, jobs: taken });
    for (const [number, id] of taken) {
      if (!acknowledged.has(id)) ids.push(id);
      acknowledged.set(id, number);
    }
    return taken.length === count;
  }

  async function read(): Promise<void> {
    while (!over.aborted) {
      await pause(READ_EVERY_MS);
      const id = anyJob();
      if (id === undefined) continue;
      const [by, asked_ms] = [any(), Math.round(performance.now())];
      const job = await call<JobView>(by, 'GET', `/api/v1/jobs/${id}`);
      if (job === undefined) continue;
      history.add({ type: 'read', by: by.name, asked_ms, id, state: job.state, said: saidIn(job.result) });
    }
  }

  async function cancel(every_ms: number): Promise<void> {
    while (!over.aborted) {
      await pause(2 * every_ms * random());
      const id = ids.at(-1 - Math.floor(50 * random()));
      if (id === undefined) continue;
      // It may be done although nobody says so.
      history.add({ type: 'cancel', id, done: false });
      const job = await call<JobView>(any(), 'POST', `/api/v1/jobs/${id}/cancel`);
      if (job?.state === 'cancelled') history.add({ type: 'cancel', id, done: true });
    }
  }

  async function ask(work: 'stream' | 'whole'): Promise<void> {
    while (!over.aborted) {
      const number = asked++;
      const by = any();
      const { status, text, end } = await answerOf(by, work, number);
      history.add({ type: 'answered', by: by.name, work, number, status, text, end });
      await pause(status === 200 ? 50 * random() : AGAIN_AFTER_MS);
    }
  }

  function any(): Replica {
    return replicas[Math.floor(random() * replicas.length)]!;
  }

  /** Of the last ones as often as of all: they are open, or have just ended. */
  function anyJob(): string | undefined {
    const among = random() < 0.5 ? Math.min(ids.length, 500) : ids.length;
    return ids.at(-1 - Math.floor(random() * among));
  }
}

/** By the request's id its record is found. */
function requestIdOf(work: 'stream' | 'whole', number: number): string {
  return `${work}-${number}`;
}

async function answerOf({ plane }: Replica, work: 'stream' | 'whole', number: number) {
  const answer = { status: 0, text: '', end: 'none' as AnswerEnd };
  try {
    const body = {
      model: MODELS[work],
      ...requestOf(work, number),
      ...(work === 'stream' && { stream: true }),
    };
    const headers = { 'x-request-id': requestIdOf(work, number) };
    const reply = await plane.chat(body, { headers, signal: AbortSignal.timeout(ANSWER_WITHIN_MS) });
    answer.status = reply.status;
    answer.end = 'broken';
    for await (const piece of reply.body!.pipeThrough(new TextDecoderStream())) answer.text += piece;
    answer.end = 'closed';
  } catch {
    // Its replica is gone, or says nothing: the client knows that it has no answer.
  }
  return answer;
}

/** Undefined: nobody answered, or it was refused. */
export async function call<T>(
  { plane }: Replica,
  method: 'GET' | 'POST',
  path: string,
  body?: unknown,
): Promise<T | undefined> {
  try {
    const reply = await fetch(`${plane.url}${path}`, {
      method,
      headers: {
        authorization: `Bearer ${plane.admin_key}`,
        ...(body !== undefined && { 'content-type': 'application/json' }),
      },
      ...(body !== undefined && { body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(CALL_WITHIN_MS),
    });
    return reply.ok ? ((await reply.json()) as T) : undefined;
  } catch {
    return undefined;
  }
}
