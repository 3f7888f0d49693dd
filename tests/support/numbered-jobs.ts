import type { ServerResponse } from 'node:http';
import { setTimeout as pause } from 'node:timers/promises';
import type { JobBatchVerdicts, JobView } from '@flotilla/protocol';
import { openStopped } from '../../packages/control/src/store/backup/place.ts';
import type { StoreOptions } from '../../packages/control/src/store/open.ts';
import { type ScriptedBackend, type SeenRequest, chatAnswer } from './scripted-backend.ts';
import { quiet } from './store.ts';
import { until } from './until.ts';
import type { Plane } from './world.ts';

/**
 * Detached jobs that carry a number each, which their answer tells again: so what became of each can be read from what
 * the backends saw and what the store has, whoever was killed meanwhile.
 */
export interface NumberedJobs {
  /** Their ids by their numbers. */
  readonly ids: Map<number, string>;
  /** The same again, by one control plane after the other, until one answers: a killed one has accepted some, all or none. */
  submit(from: number, count: number): Promise<void>;
  /** Whether any has not ended, or nobody answers. */
  someAreOpen(): Promise<boolean>;
  /** Of the jobs whose rows are not what they should be, some; the control planes are stopped. */
  wrongInStore(place: StoreOptions): Promise<unknown[]>;
}

export function numberedJobs(planes: readonly Plane[], model = 'scripted'): NumberedJobs {
  const ids = new Map<number, string>();
  let turn = 0;
  return { ids, submit, someAreOpen, wrongInStore };

  async function submit(from: number, count: number): Promise<void> {
    const jobs = Array.from({ length: count }, (_, place) => ({
      model,
      request: { messages: [{ role: 'user', content: String(from + place) }] },
      idempotency_key: `job-${from + place}`,
    }));
    const verdicts = await until(
      `jobs from ${from} on are accepted`,
      async () => {
        const reply = await planes[turn++ % planes.length]!.send<JobBatchVerdicts>(
          'POST',
          '/api/v1/jobs/batch',
          { jobs },
        ).catch(() => undefined);
        return reply?.data.every((verdict) => 'id' in verdict) === true && reply.data;
      },
      60_000,
    );
    verdicts.forEach((verdict, place) => ids.set(from + place, (verdict as { id: string }).id));
  }

  async function someAreOpen(): Promise<boolean> {
    await pause(200);
    const plane = planes[turn++ % planes.length]!;
    for (const state of ['queued', 'leased', 'running']) {
      const page = await plane
        .get<{ data: JobView[] }>(`/api/v1/jobs?state=${state}&limit=1`)
        .catch(() => undefined);
      if (page === undefined || page.data.length > 0) return true;
    }
    return false;
  }

  async function wrongInStore(place: StoreOptions): Promise<unknown[]> {
    const engine = await openStopped(place, quiet);
    try {
      const rows = await engine.query<{ id: string; result: string | null } & Record<string, unknown>>(
        `select j.id, j.state, j.error_code, b.result,
           (select count(*) from attempts a where a.job = j.id and a.outcome = 'succeeded') as succeeded,
           (select count(*) from usage u where u.job = j.id and u.outcome = 'succeeded') as used,
           (select count(*) from usage u where u.job = j.id) as usages,
           (select jsonb_agg(jsonb_build_array(a.attempt, a.outcome) order by a.attempt) from attempts a where a.job = j.id) as attempts
         from jobs j join job_bodies b on b.job = j.id`,
      );
      const numbers = new Map([...ids].map(([number, id]) => [id, number]));
      const wrong = rows.filter(
        ({ id, state, succeeded, used, usages, result }) =>
          state !== 'succeeded' ||
          succeeded !== 1 ||
          used !== 1 ||
          usages !== 1 ||
          result !== chatAnswer(`Number ${numbers.get(id)}.`, model),
      );
      return rows.length === ids.size ? wrong.slice(0, 5) : [{ rows: rows.length, accepted: ids.size }];
    } finally {
      await engine.close();
    }
  }
}

/** An answer that tells the number. */
export function tellNumber({ body }: SeenRequest, response: ServerResponse, model?: string): void {
  const answer = chatAnswer(`Number ${numberOf(body)}.`, model);
  response.writeHead(200, { 'content-type': 'application/json' }).end(answer);
}

export interface SeenCall extends SeenRequest {
  backend: ScriptedBackend;
}

/** What the backends were asked, by number and in order. */
export function callsByNumber(backends: readonly ScriptedBackend[]): Map<string, SeenCall[]> {
  const calls = backends.flatMap((backend) => backend.requests.map((request) => ({ ...request, backend })));
  calls.sort((a, b) => a.began_ms - b.began_ms);
  return Map.groupBy(calls, ({ body }) => numberOf(body));
}

/** Jobs that a backend was asked to do while it, or another, was still at it. */
export function overlaps(backends: readonly ScriptedBackend[]): unknown[] {
  const found: unknown[] = [];
  for (const [number, calls] of callsByNumber(backends)) {
    for (const [place, { began_ms }] of calls.entries()) {
      const before = calls[place - 1];
      if (before !== undefined && (before.ended_ms ?? Infinity) > began_ms)
        found.push({ number, began_ms, before_ended_ms: before.ended_ms });
    }
  }
  return found;
}

function numberOf(body: Buffer): string {
  return (JSON.parse(body.toString()) as { messages: { content: string }[] }).messages[0]!.content;
}
