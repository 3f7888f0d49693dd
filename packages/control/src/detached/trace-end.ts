import type { Log, Store, UsageRecord } from '@flotilla/core';
import type { Operation } from '@flotilla/protocol';
import type { Traces } from '../telemetry/traces.ts';

interface TraceEndDeps {
  store: Pick<Store, 'findJob' | 'findDetached'>;
  traces: Traces;
  log: Log;
}

/**
 * The span of a detached job, from its acceptance to its end, told once it has ended. Its earlier attempts may have been
 * other processes', so their stories are the store's: one look at it for each job, where traces are wanted at all.
 */
export async function traceEnd({ store, traces, log }: TraceEndDeps, usage: UsageRecord): Promise<void> {
  const { job: id, outcome, status } = usage;
  try {
    const [job, state] = await Promise.all([store.findJob(id), store.findDetached(id)]);
    if (job === undefined || state === undefined || job.finished_at === null) return;
    const { attempts, created_at, finished_at } = job;
    const first = attempts[0]?.offered_at;
    const operation = job.operation as Operation;
    const model = job.model ?? '';
    traces.request({ traceparent: state.traceparent ?? undefined }, operation, model, created_at).ended({
      job: id,
      detached: true,
      request_id: job.request_id ?? '',
      model,
      outcome,
      status,
      usage,
      attempts,
      created_at,
      queue_ms: first === undefined ? null : Math.max(0, first - created_at),
      first_byte_ms: null,
      total_ms: Math.max(0, finished_at - created_at),
    });
  } catch (error) {
    log.debug({ error, job: id }, 'The trace of a job could not be told.');
  }
}
