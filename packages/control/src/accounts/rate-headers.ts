import { type Bucket, fillBucket } from '@flotilla/core';

/** One rate of a key: a bucket, and what it holds at most. */
export interface Rate {
  readonly bucket: Bucket;
  readonly per_minute: number;
}

export interface RateLeft {
  limit: number;
  remaining: number;
  /** Until it is full. */
  reset_ms: number;
}

/** In OpenAI's names and form; nothing where there is no such limit. */
export function rateHeaders(kind: 'requests' | 'tokens', left: RateLeft | null): Record<string, string> {
  if (left === null) return {};
  const limit = String(left.limit);
  const remaining = String(left.remaining);
  const reset = resetText(left.reset_ms);
  // Names that are put together would be looked up anew with every request.
  return kind === 'requests'
    ? {
        'x-ratelimit-limit-requests': limit,
        'x-ratelimit-remaining-requests': remaining,
        'x-ratelimit-reset-requests': reset,
      }
    : {
        'x-ratelimit-limit-tokens': limit,
        'x-ratelimit-remaining-tokens': remaining,
        'x-ratelimit-reset-tokens': reset,
      };
}

export function rateLeft({ bucket, per_minute }: Rate, now_ms: number): RateLeft {
  fillBucket(bucket, per_minute, now_ms);
  return leftOf(per_minute, bucket.tokens);
}

/** @param left less than 0: that is owed */
export function leftOf(limit: number, left: number): RateLeft {
  const reset_ms = Math.max(0, Math.ceil(((limit - left) * 60_000) / limit));
  return { limit, remaining: Math.max(0, Math.floor(left)), reset_ms };
}

/** When the whole allowance is there again, as OpenAI writes durations: `20ms`, `1.5s`, `6m0s`. */
function resetText(reset_ms: number): string {
  if (reset_ms < 1000) return `${reset_ms}ms`;
  const minutes = Math.floor(reset_ms / 60_000);
  const seconds = `${(reset_ms % 60_000) / 1000}s`;
  if (minutes === 0) return seconds;
  return minutes < 60 ? `${minutes}m${seconds}` : `${Math.floor(minutes / 60)}h${minutes % 60}m${seconds}`;
}
