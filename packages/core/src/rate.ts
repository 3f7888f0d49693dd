/** A token bucket: `per_minute` requests, of which a whole minute's worth may come at once. */
export interface Bucket {
  tokens: number;
  filled_ms: number;
}

export function newBucket(per_minute: number, now_ms: number): Bucket {
  return { tokens: per_minute, filled_ms: now_ms };
}

/** Takes one. @returns 0 when taken, else how long until there is one */
export function takeToken(bucket: Bucket, per_minute: number, now_ms: number): number {
  const per_ms = per_minute / 60_000;
  bucket.tokens = Math.min(per_minute, bucket.tokens + (now_ms - bucket.filled_ms) * per_ms);
  bucket.filled_ms = now_ms;
  if (bucket.tokens >= 1) {
    bucket.tokens -= 1;
    return 0;
  }
  return Math.ceil((1 - bucket.tokens) / per_ms);
}
