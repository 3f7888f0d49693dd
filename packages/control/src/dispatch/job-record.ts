import type { JobRecord } from '@flotilla/core';
import type { ActiveJob } from './active-job.ts';

export interface JobRecordEnd {
  code: string | null;
  message: string | null;
  at: number;
}

/** The row of an attached job, open or ended; never its body. */
export function jobRecord(
  job: ActiveJob,
  replica: string,
  state: JobRecord['state'],
  end?: JobRecordEnd,
): JobRecord {
  const { request } = job;
  return {
    id: job.id,
    kind: 'inference',
    attached: true,
    state,
    replica,
    key: request.key,
    model: request.model,
    operation: request.operation,
    request_id: request.request_id,
    order_key: job.order_key,
    error_code: end?.code ?? null,
    error_message: end?.message ?? null,
    created_at: job.created_at,
    finished_at: end?.at ?? null,
  };
}
