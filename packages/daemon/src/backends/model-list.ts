import type { Model, Operation } from '@flotilla/protocol';
import type { Asked } from './ask.ts';
import { failed, type ListFailure, unanswered } from './kind.ts';

/** An entry of a models list: any object with a usable id. */
export type Entry = { id: string } & Record<string, unknown>;
export type Entries = { ok: true; entries: Entry[] } | ListFailure;

/** More cannot be described to the control plane. */
const MOST_MODELS = 2000;

const NO_SUCH_PATH = new Set([404, 405, 501]);

/** The JSON object of a good answer, or why it is none. */
export function readObject(
  asked: Asked,
  what: string,
): { ok: true; value: Record<string, unknown> } | ListFailure {
  if (!asked.ok) return unanswered(what, asked);
  if (asked.status === 401 || asked.status === 403) {
    return failed(
      `${what}: it wants another API key (status ${asked.status}); give it as api_key in node.yaml.`,
      { because: 'denied' },
    );
  }
  if (asked.status !== 200)
    return failed(
      `${what}: it answered status ${asked.status}.`,
      NO_SUCH_PATH.has(asked.status) ? { because: 'no_list' } : {},
    );
  if (!isObject(asked.json)) return failed(`${what}: the answer is no JSON object.`, { because: 'no_list' });
  return { ok: true, value: asked.json };
}

/**
 * The entries of a models list. A list that cannot be read is a failure with a reason, never an empty list; single
 * bad entries of a readable list are left out.
 */
export function readEntries(asked: Asked, what: string, field: string, idFields: readonly string[]): Entries {
  const object = readObject(asked, what);
  if (!object.ok) return object;
  const list = object.value[field];
  if (!Array.isArray(list))
    return failed(`${what}: the answer has no list "${field}".`, { because: 'no_list' });
  const byId = new Map<string, Entry>();
  for (const item of list) {
    if (!isObject(item)) continue;
    const id = idFields.map((name) => item[name]).find(isModelId);
    if (id !== undefined && !byId.has(id)) byId.set(id, { ...item, id });
  }
  if (list.length > 0 && byId.size === 0)
    return failed(`${what}: none of its ${list.length} entries has an id.`);
  return { ok: true, entries: [...byId.values()].slice(0, MOST_MODELS) };
}

function isModelId(value: unknown): value is string {
  return typeof value === 'string' && value.length > 0 && value.length <= 256;
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

export function positiveInteger(value: unknown): number | undefined {
  return typeof value === 'number' && Number.isSafeInteger(value) && value > 0 ? value : undefined;
}

export const TEXT_OPERATIONS: Operation[] = ['chat', 'completions'];

/** For servers that do not say what a model is for: embedding models nearly always have it in their names. */
export function operationsByName(id: string): Operation[] {
  return /(^|[^a-z])(embed|embedding|embeddings|bge|gte|e5)([^a-z]|$)/i.test(id)
    ? ['embeddings']
    : TEXT_OPERATIONS;
}

/** Leaves out what is not known, as the descriptor's schema wants it. */
export function model(
  id: string,
  operations: Operation[],
  facts: { loaded?: boolean | undefined; context?: unknown },
): Model {
  const context_length = positiveInteger(facts.context);
  return {
    id,
    operations,
    ...(facts.loaded === undefined ? {} : { loaded: facts.loaded }),
    ...(context_length === undefined ? {} : { context_length }),
  };
}

export function shortText(value: unknown): string | undefined {
  return typeof value === 'string' && value !== '' ? value.slice(0, 128) : undefined;
}
