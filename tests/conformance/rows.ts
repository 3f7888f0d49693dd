import { randomBytes } from 'node:crypto';
import type { Enrolment, JobRecord, KeyRecord, Settlement, Store, TokenRecord } from '@flotilla/core';
import { type IdKind, isTerminal, makeId } from '@flotilla/protocol';

/** Rows for the suite: each call makes new ids, so tests share one store without meeting. */
export const T0 = Date.parse('2026-01-01T00:00:00Z');

export function newId(kind: IdKind, at = T0): string {
  return makeId(kind, at, randomBytes(10));
}

export function newHash(): string {
  return randomBytes(32).toString('hex');
}

export function aKey(over: Partial<KeyRecord> = {}): KeyRecord {
  return {
    id: newId('key'),
    name: 'laptop',
    hash: newHash(),
    role: null,
    scopes: ['inference', 'jobs'],
    allowed_models: ['llama3', 'qwen*'],
    node_labels: { region: 'home' },
    requests_per_minute: 60,
    concurrency: null,
    tokens_per_minute: null,
    token_budget: null,
    created_at: T0,
    expires_at: null,
    last_used_at: null,
    revoked_at: null,
    ...over,
  };
}

export function aToken(over: Partial<TokenRecord> = {}): TokenRecord {
  return {
    id: newId('enrolmentToken'),
    hash: newHash(),
    labels: {},
    allowed_models: [],
    max_uses: 1,
    uses: 0,
    created_at: T0,
    expires_at: T0 + 3_600_000,
    ...over,
  };
}

export function anEnrolment(token_hash: string, over: Partial<Enrolment> = {}): Enrolment {
  const node = newId('node');
  return {
    token_hash,
    node,
    name: `n-${node.slice(-12)}`,
    labels: {},
    credential: { id: newId('credential'), hash: newHash(), created_at: T0, expires_at: null },
    now: T0,
    ...over,
  };
}

/** Enrols so many nodes and returns their ids. */
export async function enrolNodes(store: Store, count: number): Promise<string[]> {
  const token = aToken({ max_uses: count });
  await store.insertToken(token);
  const nodes: string[] = [];
  for (let index = 0; index < count; index++) {
    const enrolment = anEnrolment(token.hash);
    await store.enrolNode(enrolment);
    nodes.push(enrolment.node);
  }
  return nodes;
}

export function aJob(over: Partial<JobRecord> = {}): JobRecord {
  const created_at = over.created_at ?? T0;
  return {
    id: newId('job', created_at),
    kind: 'inference',
    attached: true,
    state: 'queued',
    replica: 'rep_a',
    key: 'key_a',
    model: 'llama3',
    operation: 'chat',
    request_id: newId('request', created_at),
    order_key: created_at,
    error_code: null,
    error_message: null,
    created_at,
    finished_at: null,
    ...over,
  };
}

export function aSettlement(
  over: Partial<JobRecord> = {},
  usage: Partial<Settlement['usage']> = {},
): Settlement {
  const open = aJob(over);
  const state = isTerminal(open.state) ? open.state : 'succeeded';
  const job: JobRecord = { ...open, state, finished_at: open.created_at + 300 };
  const node = usage.node === undefined ? 'node_a' : usage.node;
  return {
    job,
    attempts: [
      {
        attempt: 1,
        node,
        provider: usage.provider ?? null,
        backend: 'ollama',
        epoch: 7,
        outcome: job.state,
        code: null,
        message: null,
        offered_at: job.created_at,
        started_at: job.created_at + 2,
        ended_at: job.created_at + 300,
      },
    ],
    usage: {
      job: job.id,
      request_id: job.request_id,
      key: job.key,
      model: job.model,
      operation: job.operation,
      node,
      provider: null,
      outcome: job.state,
      status: 200,
      attempts: 1,
      prompt_tokens: 120,
      completion_tokens: 300,
      cached_tokens: 0,
      estimated: false,
      queue_ms: 2,
      first_byte_ms: 40,
      total_ms: 300,
      created_at: job.created_at + 300,
      ...usage,
    },
  };
}
