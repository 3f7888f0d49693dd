/**
 * A token bucket: `per_minute` units (requests, or tokens of models), of which a whole minute's worth may come at once.
 * What is taken before its size is known is put right later: the bucket may owe, and takes nothing until it has filled
 * up to zero and what is asked for.
 */
export interface Bucket {
  tokens: number;
  filled_ms: number;
}

/** Whoever waited as long as told finds a whole token, whatever adding up fractions makes of it. */
const ROUNDING = 1e-6;

export function newBucket(per_minute: number, now_ms: number): Bucket {
  return { tokens: per_minute, filled_ms: now_ms };
}

/** What has come into it since it was last looked at. */
export function fillBucket(bucket: Bucket, per_minute: number, now_ms: number): void {
  bucket.tokens = Math.min(per_minute, bucket.tokens + ((now_ms - bucket.filled_ms) * per_minute) / 60_000);
  bucket.filled_ms = now_ms;
}

/** Takes one. @returns 0 when taken, else how long until there is one */
export function takeToken(bucket: Bucket, per_minute: number, now_ms: number): number {
  return takeTokens(bucket, per_minute, 1, now_ms);
}

/**
 * Takes so many. More than a minute's worth is taken from a full bucket, which then owes the rest: otherwise such a
 * request could never be made.
 * @returns 0 when taken, else how long until that can be
 */
export function takeTokens(bucket: Bucket, per_minute: number, amount: number, now_ms: number): number {
  const wait_ms = waitFor(bucket, per_minute, amount, now_ms);
  if (wait_ms === 0) bucket.tokens = withoutRounding(bucket.tokens - amount);
  return wait_ms;
}

/** How long until so many can be taken; 0: now. Takes nothing. */
export function waitFor(bucket: Bucket, per_minute: number, amount: number, now_ms: number): number {
  fillBucket(bucket, per_minute, now_ms);
  const needed = Math.min(amount, per_minute);
  if (bucket.tokens >= needed - ROUNDING) return 0;
  return Math.ceil(((needed - bucket.tokens) * 60_000) / per_minute);
}

/** Gives back what was taken and not used; a negative amount takes what was used beyond that. */
export function giveTokens(bucket: Bucket, per_minute: number, amount: number, now_ms: number): void {
  fillBucket(bucket, per_minute, now_ms);
  bucket.tokens = Math.min(per_minute, bucket.tokens + amount);
}

function withoutRounding(tokens: number): number {
  return Math.abs(tokens) < ROUNDING ? 0 : tokens;
}
