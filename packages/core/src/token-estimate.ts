import type { TokenUsage } from '@flotilla/protocol';
import { BYTES_PER_TOKEN } from './token-usage.ts';

/**
 * What a request may cost, before it has run. Its prompt is known by its bytes only, its answer by `max_tokens` where
 * the client says so; for the rest each key's own past speaks: the highest that was seen lately, which fades.
 */
export interface RequestSize {
  /** Of the prompt, by its bytes. */
  readonly prompt_tokens: number;
  /** The most that its answer can have; null: the client set no bound. */
  readonly answer_tokens: number | null;
}

/** One a key. */
export interface TokenEstimator {
  /** By how much real prompts exceeded their bytes' worth: chat templates, tools, scripts with few bytes a token. */
  prompt_excess: number;
  /** Of answers without a bound; null: none has ended yet. */
  answer: number | null;
}

/** A chat template's own words, until the key's requests have told. */
const FIRST_EXCESS = 32;
/** A long answer, until the key's requests have told. */
const FIRST_ANSWER = 4096;
const FADE = 0.9;
/** What an image, a sound or a file in a chat is taken for: its bytes say nothing of its tokens. */
const MEDIA_TOKENS = 1000;
/** A client that asks for more wants what its model has. */
const MOST = 1_000_000_000;

export function newTokenEstimator(): TokenEstimator {
  return { prompt_excess: FIRST_EXCESS, answer: null };
}

/** What to reserve for it. */
export function estimateRequest(estimator: TokenEstimator, size: RequestSize): number {
  const answer = size.answer_tokens ?? estimator.answer ?? FIRST_ANSWER;
  return Math.ceil(size.prompt_tokens + estimator.prompt_excess + answer);
}

/** Takes to heart what a backend has counted. */
export function learnUsage(estimator: TokenEstimator, size: RequestSize, usage: TokenUsage): void {
  if (usage.estimated || usage.prompt_tokens === 0) return;
  const excess = usage.prompt_tokens - size.prompt_tokens;
  estimator.prompt_excess = Math.max(0, excess, estimator.prompt_excess * FADE);
  if (size.answer_tokens !== null) return;
  estimator.answer = Math.max(usage.completion_tokens, (estimator.answer ?? 0) * FADE);
}

/** Reads the size of an OpenAI request. Fields of other types than documented are the backend's to refuse. */
export function requestSize(
  fields: Readonly<Record<string, unknown>>,
  body_bytes: number,
  operation: string,
): RequestSize {
  const media = mediaOf(fields['messages']);
  const counted = Math.max(countTokens(fields['prompt']), countTokens(fields['input']));
  const text = Math.max(0, body_bytes - media.bytes) / BYTES_PER_TOKEN;
  const prompt_tokens = Math.ceil(Math.max(text, counted) + media.count * MEDIA_TOKENS);
  if (operation === 'embeddings') return { prompt_tokens, answer_tokens: 0 };
  const bound = positive(fields['max_completion_tokens']) ?? positive(fields['max_tokens']);
  const answers = Math.max(positive(fields['n']) ?? 1, positive(fields['best_of']) ?? 1);
  const prompts = operation === 'completions' ? promptCount(fields['prompt']) : 1;
  return { prompt_tokens, answer_tokens: bound === null ? null : Math.min(MOST, bound * answers * prompts) };
}

function positive(value: unknown): number | null {
  return typeof value === 'number' && Number.isFinite(value) && value > 0 ? Math.min(MOST, value) : null;
}

/** Parts of messages that are no text, and the bytes that they take as base64. */
function mediaOf(messages: unknown): { count: number; bytes: number } {
  const media = { count: 0, bytes: 0 };
  if (!Array.isArray(messages)) return media;
  for (const message of messages as unknown[]) {
    const content = isObject(message) ? message['content'] : undefined;
    if (!Array.isArray(content)) continue;
    for (const part of content as unknown[]) {
      if (!isObject(part) || part['type'] === 'text' || typeof part['text'] === 'string') continue;
      media.count += 1;
      media.bytes += longestText(part);
    }
  }
  return media;
}

/** `{type: "image_url", image_url: {url}}`, `{type: "input_audio", input_audio: {data}}`, `{type: "file", file: …}`. */
function longestText(part: Record<string, unknown>): number {
  let longest = 0;
  for (const value of Object.values(part)) {
    const inner = isObject(value) ? Object.values(value) : [value];
    for (const text of inner) if (typeof text === 'string') longest = Math.max(longest, text.length);
  }
  return longest;
}

/** Prompts and inputs may come as tokens, one list or several. */
function countTokens(value: unknown): number {
  if (!Array.isArray(value)) return 0;
  let count = 0;
  for (const item of value as unknown[]) {
    if (typeof item === 'number') count += 1;
    else if (Array.isArray(item)) count += item.length;
  }
  return count;
}

/** A list of texts, or of lists of tokens, is as many prompts; a list of tokens is one. */
function promptCount(prompt: unknown): number {
  if (!Array.isArray(prompt) || prompt.length === 0) return 1;
  return typeof prompt[0] === 'number' ? 1 : prompt.length;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
