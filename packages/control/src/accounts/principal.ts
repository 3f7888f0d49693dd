import type { KeyRecord } from '@flotilla/core';
import type { Scope } from '@flotilla/protocol';

/** Who asks: an API key, seen through the snapshot in memory. */
export interface Principal {
  readonly key: KeyRecord;
  readonly admin: boolean;
  has(scope: Scope): boolean;
}
