import type { Clock, KeyRecord, Log, Random, Store } from '@flotilla/core';
import { makeId, type Scope } from '@flotilla/protocol';
import { repeat } from '../repeat.ts';
import { hashCredential } from './credential.ts';
import type { Principal } from './principal.ts';

/**
 * API keys, as a snapshot in memory: no request waits for the store to learn who asks.
 *
 *     store ──replace()──▶ snapshot by hash ──authenticate()──▶ principal, or why not
 *                              │ last used, in memory ──every 5 s──▶ store, one statement
 *
 * Replaced whole by the snapshot reader when the configuration version moves. On a crash the last seconds of
 * `last_used_at` are lost, nothing else.
 */
export interface Keys {
  authenticate(credential: string): Authentication;
  replace(records: readonly KeyRecord[]): void;
  /** Newest first, revoked ones too. */
  list(): readonly KeyRecord[];
  find(id: string): KeyRecord | undefined;
  /** Takes over one key as the store has it now, before the next snapshot says the same. */
  put(record: KeyRecord): void;
  /** Writes what was used since the last time; what cannot be written is kept for the next. */
  flush(): Promise<void>;
  close(): Promise<void>;
}

type Authentication = { principal: Principal } | { refused: 'unknown' | 'expired' | 'revoked' };

const FLUSH_MS = 5000;

export function createKeys({ store, clock, log }: { store: Store; clock: Clock; log: Log }): Keys {
  let by_hash = new Map<string, Principal>();
  let by_id = new Map<string, KeyRecord>();
  const used = new Map<string, number>();
  let failing = false;
  const flushing = repeat(clock, () => FLUSH_MS, flush);

  return { authenticate, replace, list, find: (id) => by_id.get(id), put, flush, close };

  function authenticate(credential: string): Authentication {
    const principal = by_hash.get(hashCredential(credential));
    if (principal === undefined) return { refused: 'unknown' };
    const { key } = principal;
    const now = clock.wall_ms();
    if (key.revoked_at !== null) return { refused: 'revoked' };
    if (key.expires_at !== null && key.expires_at <= now) return { refused: 'expired' };
    key.last_used_at = now;
    used.set(key.id, now);
    return { principal };
  }

  function replace(records: readonly KeyRecord[]): void {
    const before = by_id;
    by_hash = new Map();
    by_id = new Map();
    for (const record of records) {
      // A reading that began before a revocation does not undo it.
      const revoked_at = record.revoked_at ?? before.get(record.id)?.revoked_at ?? null;
      put({ ...record, revoked_at });
    }
  }

  function put(record: KeyRecord): void {
    const key = { ...record, last_used_at: used.get(record.id) ?? record.last_used_at };
    by_id.set(key.id, key);
    by_hash.set(key.hash, principalOf(key));
  }

  function list(): readonly KeyRecord[] {
    return [...by_id.values()].sort((a, b) => (a.id < b.id ? 1 : -1));
  }

  async function flush(): Promise<void> {
    if (used.size === 0) return;
    const batch = [...used].map(([id, at]) => ({ id, at }));
    try {
      await store.touchKeys(batch);
    } catch (error) {
      if (!failing)
        log.warn({ error }, 'Times of last use of keys cannot be written; they are kept and tried again.');
      failing = true;
      return;
    }
    failing = false;
    for (const { id, at } of batch) if (used.get(id) === at) used.delete(id);
  }

  async function close(): Promise<void> {
    await flushing.stop();
    await flush();
  }
}

export function principalOf(key: KeyRecord): Principal {
  const admin = key.role === 'admin';
  const scopes = new Set<Scope>(key.scopes);
  return { key, admin, has: (scope) => admin || scopes.has(scope) };
}

const BOOTSTRAP_NAME = 'FLOTILLA_ADMIN_KEY';

/**
 * Makes the key of `FLOTILLA_ADMIN_KEY`, unless the store has its hash: its id then stays what it was, and a revoked
 * one stays revoked.
 */
export async function ensureAdminKey(
  admin_key: string,
  { store, clock, random, log }: { store: Store; clock: Clock; random: Random; log: Log },
): Promise<void> {
  const hash = hashCredential(admin_key);
  const find = async () => {
    const records = await store.loadKeys();
    return { records, found: records.find((key) => key.hash === hash) };
  };
  const { records, found } = await find();
  warnOfEarlier(records, hash, log);
  if (found === undefined) {
    await store.insertKey(bootstrapKey(hash, clock, random)).catch(async (error: unknown) => {
      // Another replica that starts at the same time has made it.
      if ((await find()).found === undefined) throw error;
    });
    return;
  }
  if (found.revoked_at !== null) {
    log.warn({ key: found.id }, 'The key in FLOTILLA_ADMIN_KEY was revoked and stays so: set another one.');
  } else if (found.role !== 'admin') {
    log.warn({ key: found.id }, 'The key in FLOTILLA_ADMIN_KEY is an ordinary key: set another one.');
  }
}

function warnOfEarlier(records: readonly KeyRecord[], hash: string, log: Log): void {
  const earlier = records.filter(
    (key) =>
      key.name === BOOTSTRAP_NAME && key.role === 'admin' && key.hash !== hash && key.revoked_at === null,
  );
  if (earlier.length === 0) return;
  log.warn(
    { keys: earlier.map((key) => key.id) },
    'Admin keys that came from an earlier FLOTILLA_ADMIN_KEY still work: revoke them if they should not.',
  );
}

function bootstrapKey(hash: string, clock: Clock, random: Random): KeyRecord {
  const now = clock.wall_ms();
  return {
    id: makeId('key', now, random.bytes(10)),
    name: BOOTSTRAP_NAME,
    hash,
    role: 'admin',
    scopes: [],
    allowed_models: [],
    node_labels: {},
    requests_per_minute: null,
    concurrency: null,
    tokens_per_minute: null,
    token_budget: null,
    created_at: now,
    expires_at: null,
    last_used_at: null,
    revoked_at: null,
  };
}
