import type { Dispatcher } from 'undici';
import { asker, type Asked } from './ask.ts';
import { failed, type Kind, type KindName, type Listed, type ListFailure, type Server } from './kind.ts';
import { llamaCpp } from './llama-cpp.ts';
import { lmStudio } from './lm-studio.ts';
import { isObject, readEntries, readObject } from './model-list.ts';
import { ollama } from './ollama.ts';
import { openai } from './openai.ts';
import { vllm } from './vllm.ts';

/** In this order: llama.cpp also answers some of Ollama's paths, and the last one takes every other. */
export const KINDS: readonly Kind[] = [llamaCpp, lmStudio, ollama, vllm, openai];

export interface Address {
  /** As given: with or without `/v1`, without a trailing slash. */
  url: string;
  headers: Record<string, string>;
}

export interface Reach {
  dispatcher: Dispatcher;
  signal: AbortSignal;
}

/** A server whose kind is known. */
export interface Opened {
  kind: KindName;
  base_url: string;
  list(): Promise<Listed>;
}

/** Where the OpenAI API may be under the address somebody gave, likeliest first. */
function basesOf(url: string): { root: string; base: string }[] {
  if (url.endsWith('/v1')) return [{ root: url.slice(0, -3), base: url }];
  const bases = [{ root: url, base: `${url}/v1` }];
  // `https://host/openai` may be the API itself; a bare host never is.
  if (new URL(url).pathname !== '/') bases.push({ root: url, base: url });
  return bases;
}

/** Before anything is known of a server, requests would go here. */
export function likelyBase(url: string): string {
  return basesOf(url)[0]!.base;
}

/**
 * Finds out what listens at an address.
 * @param wanted the kind its owner named; then it is asked as that, whatever it looks like
 */
export async function identify(
  address: Address,
  reach: Reach,
  wanted?: KindName,
): Promise<{ ok: true; opened: Opened } | ListFailure> {
  let failure: ListFailure | null = null;
  for (const { root, base } of basesOf(address.url)) {
    const server: Server = {
      root: asker({ base_url: root, headers: address.headers, ...reach }),
      api: asker({ base_url: base, headers: address.headers, ...reach }),
    };
    const models = await server.api('/models');
    if (!models.ok && models.refused)
      return failed(`It cannot be reached: ${models.reason}.`, { refused: true });
    const kind = await kindOf(server, models, wanted);
    if (kind !== null) {
      const opened = kind.open(server);
      return { ok: true, opened: { kind: kind.name, base_url: base, list: () => opened.list() } };
    }
    failure ??= whyNone(models);
  }
  return failure ?? failed('Nothing was asked.');
}

async function kindOf(server: Server, models: Asked, wanted?: KindName): Promise<Kind | null> {
  if (wanted !== undefined) {
    const kind = KINDS.find(({ name }) => name === wanted);
    return kind !== undefined && models.ok && models.status !== 404 ? kind : null;
  }
  // All of them answer this. What does not is asked no further: it may be somebody's own server on such a port.
  if (!readObject(models, 'models').ok) return null;
  for (const kind of KINDS) {
    if (await kind.recognise(server, models)) return kind;
  }
  return null;
}

function whyNone(models: Asked): ListFailure {
  const entries = readEntries(models, 'GET /v1/models', 'data', ['id']);
  return entries.ok ? failed('It is no model server that is known.') : entries;
}

/**
 * Whether something found at a port, that nobody told us of, is a model server beyond doubt. A kind of its own is; for
 * the rest the list must look in every entry as OpenAI's does, since any web server may sit on such a port.
 */
export async function isModelServer(opened: Opened, address: Address, reach: Reach): Promise<boolean> {
  if (opened.kind !== 'openai') return true;
  const answer = readObject(
    await asker({ base_url: opened.base_url, headers: address.headers, ...reach })('/models'),
    'models',
  );
  if (!answer.ok || answer.value['object'] !== 'list') return false;
  const data: unknown = answer.value['data'];
  return (
    Array.isArray(data) &&
    data.length > 0 &&
    data.every((entry) => isObject(entry) && entry['object'] === 'model')
  );
}
