import { TOKENS_MAX, type TokenUsage } from '@flotilla/protocol';

/** Bytes of text that make about one token, where a backend tells no count. */
export const BYTES_PER_TOKEN = 4;

/** Reads an OpenAI `usage` object; undefined when it is none. Counts that are no counts become 0. */
export function readUsage(value: unknown): TokenUsage | undefined {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return undefined;
  const usage = value as Record<string, unknown>;
  const details = usage['prompt_tokens_details'];
  const cached =
    typeof details === 'object' && details !== null ? (details as Record<string, unknown>) : undefined;
  return {
    prompt_tokens: tokenCount(usage['prompt_tokens']),
    completion_tokens: tokenCount(usage['completion_tokens']),
    cached_tokens: tokenCount(cached?.['cached_tokens']),
    estimated: false,
  };
}

/** What a request and its answer must have cost, from their lengths; always marked as estimated. */
export function estimateUsage(prompt_bytes: number, completion_bytes: number): TokenUsage {
  return {
    prompt_tokens: Math.ceil(prompt_bytes / BYTES_PER_TOKEN),
    completion_tokens: Math.ceil(completion_bytes / BYTES_PER_TOKEN),
    cached_tokens: 0,
    estimated: true,
  };
}

function tokenCount(value: unknown): number {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= TOKENS_MAX
    ? value
    : 0;
}
