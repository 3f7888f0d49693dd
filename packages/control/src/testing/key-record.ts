import type { KeyRecord } from '@flotilla/core';
import { hashCredential } from '../accounts/credential.ts';

export const CREDENTIAL = 'flk_of-the-test';

export function keyRecord(change: Partial<KeyRecord> = {}): KeyRecord {
  return {
    id: 'key_00000000000000000000000001',
    name: 'test',
    hash: hashCredential(CREDENTIAL),
    role: null,
    scopes: ['inference'],
    allowed_models: [],
    node_labels: {},
    requests_per_minute: null,
    concurrency: null,
    tokens_per_minute: null,
    token_budget: null,
    created_at: 0,
    expires_at: null,
    last_used_at: null,
    revoked_at: null,
    ...change,
  };
}
