import type { Model } from '@flotilla/protocol';
import type { Ask, Asked } from './ask.ts';

/** What a model server can be. `openai` is any that speaks OpenAI's API and is none of the others. */
export const KIND_NAMES = ['ollama', 'llama.cpp', 'vllm', 'lm-studio', 'openai'] as const;
export type KindName = (typeof KIND_NAMES)[number];

/** What a server answered when asked for its models, read leniently and checked. */
export interface Listing {
  models: Model[];
  version?: string;
  /** How many requests it serves at once, where it tells. */
  slots?: number;
  /** Whether a request for a model may make it load that model, and throw out another. */
  loads_on_demand: boolean;
  /** What it says it is, where that is no kind of its own. */
  calls_itself?: string;
}

export interface ListFailure {
  ok: false;
  /** Nothing listens there, or nothing can be reached. */
  refused: boolean;
  /** A sentence for the operator; no body, no credential. */
  reason: string;
  /** Where more is known: it was silent, it wants another key, or it answers but has no such list. */
  because?: 'silent' | 'denied' | 'no_list';
}
export type Listed = { ok: true; listing: Listing } | ListFailure;

/** A server at its address, before or after it is known what it is. */
export interface Server {
  /** Paths from its root: `/api/tags`. */
  root: Ask;
  /** Paths from its OpenAI base: `/models`. */
  api: Ask;
}

/** One kind of model server: how to know it, and what to ask it. */
export interface Kind {
  name: KindName;
  usual_port: number | null;
  /** Whether this server is one, given what it answered to `GET {base}/models`. */
  recognise(server: Server, models: Asked): Promise<boolean>;
  /** Opens one server; the closure may remember what rarely changes. */
  open(server: Server): { list(): Promise<Listed> };
}

export function failed(
  reason: string,
  { refused = false, because }: { refused?: boolean; because?: ListFailure['because'] } = {},
): ListFailure {
  return { ok: false, refused, reason, ...(because === undefined ? {} : { because }) };
}

/** Of a question that got no answer. */
export function unanswered(what: string, asked: Extract<Asked, { ok: false }>): ListFailure {
  const { reason, refused, timeout } = asked;
  return failed(`${what}: ${reason}.`, timeout ? { refused, because: 'silent' } : { refused });
}
