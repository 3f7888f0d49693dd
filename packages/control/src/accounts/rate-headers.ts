import { type Bucket, fillBucket, fullIn } from '@flotilla/core';

/** One rate of a key: a bucket, and what it holds at most. */
export interface Rate {
  readonly bucket: Bucket;
  readonly per_minute: number;
}

/** In OpenAI's names and form, as the rate stands now; nothing where there is no such limit. */
export function rateHeaders(
  kind: 'requests' | 'tokens',
  rate: Rate | null,
  now_ms: number,
): Record<string, string> {
  if (rate === null) return {};
  const { limit, remaining, reset_ms } = rateLeft(rate, now_ms);
  return {
    [`x-ratelimit-limit-${kind}`]: String(limit),
    [`x-ratelimit-remaining-${kind}`]: String(remaining),
    [`x-ratelimit-reset-${kind}`]: resetText(reset_ms),
  };
}

export function rateLeft({ bucket, per_minute }: Rate, now_ms: number) {
  fillBucket(bucket, per_minute, now_ms);
  return {
    limit: per_minute,
    remaining: Math.max(0, Math.floor(bucket.tokens)),
    reset_ms: fullIn(bucket, per_minute),
  };
}

/** When the whole allowance is there again, as OpenAI writes durations: `20ms`, `1.5s`, `6m0s`. */
function resetText(reset_ms: number): string {
  if (reset_ms < 1000) return `${reset_ms}ms`;
  const minutes = Math.floor(reset_ms / 60_000);
  const seconds = `${(reset_ms % 60_000) / 1000}s`;
  if (minutes === 0) return seconds;
  return minutes < 60 ? `${minutes}m${seconds}` : `${Math.floor(minutes / 60)}h${minutes % 60}m${seconds}`;
}
