import { BYTES_PER_TOKEN } from '@flotilla/core';
import { ID_PREFIXES } from '@flotilla/protocol';
import { type Columns, listed } from './columns.ts';

/** The columns of JobRecord, AttemptRecord and UsageRecord, in the store's names and types: the port's own. */
export const JOB = {
  id: 'text',
  kind: 'text',
  attached: 'boolean',
  state: 'text',
  replica: 'text',
  key: 'text',
  model: 'text',
  operation: 'text',
  request_id: 'text',
  order_key: 'bigint',
  error_code: 'text',
  error_message: 'text',
  created_at: 'bigint',
  finished_at: 'bigint',
} as const satisfies Columns;
export const ATTEMPT = {
  job: 'text',
  attempt: 'bigint',
  node: 'text',
  provider: 'text',
  backend: 'text',
  epoch: 'bigint',
  outcome: 'text',
  code: 'text',
  message: 'text',
  offered_at: 'bigint',
  started_at: 'bigint',
  ended_at: 'bigint',
} as const satisfies Columns;
export const USAGE = {
  job: 'text',
  request_id: 'text',
  key: 'text',
  model: 'text',
  operation: 'text',
  node: 'text',
  provider: 'text',
  outcome: 'text',
  status: 'bigint',
  attempts: 'bigint',
  prompt_tokens: 'bigint',
  completion_tokens: 'bigint',
  cached_tokens: 'bigint',
  estimated: 'boolean',
  queue_ms: 'bigint',
  first_byte_ms: 'bigint',
  total_ms: 'bigint',
  created_at: 'bigint',
} as const satisfies Columns;

export const JOB_COLUMNS = listed(JOB);
export const ATTEMPT_COLUMNS = listed(ATTEMPT);
export const USAGE_COLUMNS = listed(USAGE);

/** What the prompt of an attempt must have cost where nobody has told: by the bytes of its request, if it had started. */
export function promptEstimate(started_at: string, job: string): string {
  return `case when ${started_at} is null then 0 else coalesce((
    select ceil(octet_length(request) / ${BYTES_PER_TOKEN}.0) from job_bodies where job = ${job}), 0)::bigint end`;
}

/** For the columns `node, provider` of stories and usage: who serves a job is one column of it, whichever it is. */
export function served(column: string): string {
  const by_provider = `starts_with(${column}, '${ID_PREFIXES.provider}_')`;
  return `case when not ${by_provider} then ${column} end, case when ${by_provider} then ${column} end`;
}
