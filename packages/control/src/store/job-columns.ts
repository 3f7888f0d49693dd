import { BYTES_PER_TOKEN } from '@flotilla/core';
import { ID_PREFIXES } from '@flotilla/protocol';

/** The columns of JobRecord and AttemptRecord, in the store's names and types: the port's own. */
export const JOB_COLUMNS = `id, kind, attached, state, replica, key, model, operation, request_id, order_key,
  error_code, error_message, created_at, finished_at`;
export const JOB_TYPES = `id text, kind text, attached boolean, state text, replica text, key text, model text,
  operation text, request_id text, order_key bigint, error_code text, error_message text,
  created_at bigint, finished_at bigint`;

export const ATTEMPT_COLUMNS = `job, attempt, node, provider, backend, epoch, outcome, code, message,
  offered_at, started_at, ended_at`;
export const ATTEMPT_TYPES = `job text, attempt bigint, node text, provider text, backend text, epoch bigint, outcome text,
  code text, message text, offered_at bigint, started_at bigint, ended_at bigint`;

export const USAGE_COLUMNS = `job, request_id, key, model, operation, node, provider, outcome, status, attempts,
  prompt_tokens, completion_tokens, cached_tokens, estimated, queue_ms, first_byte_ms, total_ms, created_at`;
export const USAGE_TYPES = `job text, request_id text, key text, model text, operation text, node text, provider text, outcome text,
  status bigint, attempts bigint, prompt_tokens bigint, completion_tokens bigint, cached_tokens bigint,
  estimated boolean, queue_ms bigint, first_byte_ms bigint, total_ms bigint, created_at bigint`;

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
