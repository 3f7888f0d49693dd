import { OPERATIONS, type Operation } from '@flotilla/protocol';
import type { Ask, Asked } from './ask.ts';
import { isObject } from './model-list.ts';

/**
 * The proof that a model works: the smallest answer it can give, one token or one embedding. The question is ours, so
 * what the server says about it may be repeated to the operator.
 */
export type Proof =
  | { outcome: 'good'; operation: Operation }
  | { outcome: 'failed'; reason: string; refused: boolean; timeout: boolean; busy: boolean }
  | { outcome: 'unclear' };

/** A loaded model gives one token within a second; a large one on a processor within some. */
const PROOF_TIMEOUT_MS = 30_000;

const QUESTIONS: Record<Operation, { path: string; body: object; answer: string }> = {
  chat: {
    path: '/chat/completions',
    body: { messages: [{ role: 'user', content: 'Hi' }], max_tokens: 1, temperature: 0, stream: false },
    answer: 'choices',
  },
  completions: {
    path: '/completions',
    body: { prompt: 'Hi', max_tokens: 1, temperature: 0, stream: false },
    answer: 'choices',
  },
  embeddings: { path: '/embeddings', body: { input: 'Hi' }, answer: 'data' },
};

/** What a server answers to an operation that it, or the model, does not have. */
const NOT_THAT_WAY = new Set([400, 404, 405, 415, 422, 501]);
const BUSY = new Set([408, 429, 503]);

/**
 * Asks in the way the model is known to answer; refused that, in the others, for most servers do not tell which of
 * their models are for embeddings.
 */
export async function prove(api: Ask, model: string, operations: readonly Operation[]): Promise<Proof> {
  const ways = [...operations, ...OPERATIONS.filter((operation) => !operations.includes(operation))];
  let unknown = false;
  for (const operation of ways) {
    const { path, body, answer } = QUESTIONS[operation];
    const asked = await api(path, { body: { model, ...body }, timeout_ms: PROOF_TIMEOUT_MS });
    if (asked.ok && NOT_THAT_WAY.has(asked.status)) {
      unknown ||= asked.status === 404;
      continue;
    }
    return judge(asked, operation, path, answer);
  }
  return unknown ? failure('The server does not know the model (status 404).') : { outcome: 'unclear' };
}

function judge(asked: Asked, operation: Operation, path: string, answer: string): Proof {
  if (!asked.ok) {
    return {
      outcome: 'failed',
      reason: `POST ${path}: ${asked.reason}.`,
      refused: asked.refused,
      timeout: asked.timeout,
      busy: false,
    };
  }
  if (asked.status === 401 || asked.status === 403)
    return failure(`POST ${path}: it wants another API key (status ${asked.status}).`);
  if (asked.status !== 200) {
    return {
      ...failure(`POST ${path}: status ${asked.status}${saying(asked.json)}.`),
      busy: BUSY.has(asked.status),
    };
  }
  const pieces = isObject(asked.json) ? asked.json[answer] : undefined;
  if (Array.isArray(pieces) && pieces.length > 0) return { outcome: 'good', operation };
  return failure(`POST ${path}: status 200 without "${answer}"${saying(asked.json)}.`);
}

function failure(reason: string) {
  return { outcome: 'failed' as const, reason, refused: false, timeout: false, busy: false };
}

function saying(json: unknown): string {
  const error = isObject(json) ? json['error'] : undefined;
  const message = isObject(error) ? error['message'] : error;
  return typeof message === 'string' && message !== '' ? ` (${message.slice(0, 200)})` : '';
}
