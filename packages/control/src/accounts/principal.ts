import type { KeyRecord } from '@flotilla/core';
import type { Scope } from '@flotilla/protocol';

/** Who asks: an API key, seen through the snapshot in memory. */
export interface Principal {
  readonly key: KeyRecord;
  readonly admin: boolean;
  has(scope: Scope): boolean;
}

/** What one accepted inference request holds of its key's limits. */
export interface Admission {
  /** Gives the concurrency back; later calls do nothing. */
  release(): void;
  /** `x-ratelimit-*` headers as they stand after this request. */
  readonly headers: Record<string, string>;
}
