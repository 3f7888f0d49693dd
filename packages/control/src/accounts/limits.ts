import { type Bucket, type Clock, newBucket, takeToken } from '@flotilla/core';
import { FlotillaError } from '@flotilla/protocol';
import type { Admission, Principal } from './principal.ts';

/**
 * The limits of each key on this replica: requests per minute (a bucket that holds a minute's worth) and requests at
 * once. All in memory; a restart fills the buckets.
 */
export interface Limits {
  /** @throws FlotillaError `rate_limited`, which takes nothing from the key */
  admit(principal: Principal): Admission;
}

interface Account {
  in_flight: number;
  bucket: Bucket | null;
  per_minute: number | null;
}

/** How soon another request may be done: nobody can know, so that a client does not ask in a tight loop. */
const CONCURRENCY_RETRY_MS = 1000;
const NO_HEADERS = {};

export function createLimits(clock: Clock): Limits {
  // One entry a key that ever asked: as many as there are keys.
  const accounts = new Map<string, Account>();

  return {
    admit({ key }) {
      const account = accountOf(key.id, key.requests_per_minute);
      refuseAtOnce(account, key.concurrency);
      const headers = takeOne(account);
      account.in_flight += 1;
      let held = true;
      return {
        headers,
        release() {
          if (held) account.in_flight -= 1;
          held = false;
        },
      };
    },
  };

  function accountOf(id: string, per_minute: number | null): Account {
    let account = accounts.get(id);
    if (account === undefined) {
      account = { in_flight: 0, bucket: null, per_minute: null };
      accounts.set(id, account);
    }
    if (account.per_minute !== per_minute) {
      account.per_minute = per_minute;
      account.bucket = per_minute === null ? null : newBucket(per_minute, clock.now_ms());
    }
    return account;
  }

  function refuseAtOnce(account: Account, concurrency: number | null): void {
    if (concurrency === null || account.in_flight < concurrency) return;
    throw new FlotillaError(
      'rate_limited',
      `This key may have ${concurrency} requests under way, and has them.`,
      { retry_after_ms: CONCURRENCY_RETRY_MS },
    );
  }

  function takeOne({ bucket, per_minute }: Account): Record<string, string> {
    if (bucket === null || per_minute === null) return NO_HEADERS;
    const wait_ms = takeToken(bucket, per_minute, clock.now_ms());
    if (wait_ms === 0) return rateHeaders(bucket, per_minute);
    throw new FlotillaError('rate_limited', `This key may send ${per_minute} requests a minute, and has.`, {
      retry_after_ms: wait_ms,
      headers: rateHeaders(bucket, per_minute),
    });
  }
}

/** OpenAI's names; `reset` is when the whole allowance is there again, as a duration such as `1.5s`. */
function rateHeaders(bucket: Bucket, per_minute: number): Record<string, string> {
  const reset_ms = Math.ceil(((per_minute - bucket.tokens) * 60_000) / per_minute);
  return {
    'x-ratelimit-limit-requests': String(per_minute),
    'x-ratelimit-remaining-requests': String(Math.floor(bucket.tokens)),
    'x-ratelimit-reset-requests': reset_ms < 1000 ? `${reset_ms}ms` : `${reset_ms / 1000}s`,
  };
}
