import type { Clock, KeyPatch, KeyRecord, Random, Store } from '@flotilla/core';
import { FlotillaError, type KeyView, makeId } from '@flotilla/protocol';
import { hashCredential, makeCredential } from '../accounts/credential.ts';
import type { Keys } from '../accounts/keys.ts';
import type { Snapshots } from '../accounts/snapshots.ts';
import { iso, isoOrNull } from './iso.ts';
import { knownId, notFound, pageOfList, pageRequest } from './paging.ts';
import { type Handlers, present } from './routing.ts';

export interface KeyDeps {
  store: Store;
  keys: Keys;
  snapshots: Pick<Snapshots, 'changed'>;
  clock: Clock;
  random: Random;
}

type KeyRoutes = 'whoami' | 'listKeys' | 'createKey' | 'showKey' | 'updateKey' | 'revokeKey';

/** Every change is committed and in force on this replica before its answer, also where the store fails after it. */
export function keyRoutes({ store, keys, snapshots, clock, random }: KeyDeps): Pick<Handlers, KeyRoutes> {
  return {
    whoami: ({ principal: { key } }) => ({ id: key.id, name: key.name, role: key.role, scopes: key.scopes }),

    listKeys({ query }) {
      const page = pageRequest(query, 'key');
      const { items, next_after } = pageOfList(
        keys.list(),
        page,
        (key) => key.id,
        (key, after) => key.id < after,
      );
      return { data: items.map(keyView), next_after };
    },

    async createKey({ body }) {
      const now = clock.wall_ms();
      const credential = makeCredential('apiKey', random);
      const key: KeyRecord = {
        id: makeId('key', now, random.bytes(10)),
        name: body.name,
        hash: hashCredential(credential),
        role: body.role ?? null,
        scopes: body.scopes,
        allowed_models: body.allowed_models,
        node_labels: body.node_labels,
        requests_per_minute: body.requests_per_minute ?? null,
        concurrency: body.concurrency ?? null,
        tokens_per_minute: body.tokens_per_minute ?? null,
        token_budget: body.token_budget ?? null,
        created_at: now,
        expires_at: body.expires_at === undefined ? null : futureTime(body.expires_at, now),
        last_used_at: null,
        revoked_at: null,
      };
      await store.insertKey(key);
      keys.put(key);
      await snapshots.changed();
      return { ...keyView(key), key: credential };
    },

    showKey({ params }) {
      const key = keys.find(knownId('key', params.id, 'key'));
      if (key === undefined) throw notFound('key', params.id);
      return keyView(key);
    },

    async updateKey({ params, body }) {
      const { expires_at, ...rest } = present(body);
      const patch: KeyPatch = { ...rest };
      if (expires_at === null) patch.expires_at = null;
      else if (expires_at !== undefined) patch.expires_at = futureTime(expires_at, clock.wall_ms());
      const key = await store.updateKey(knownId('key', params.id, 'key'), patch);
      if (key === undefined) throw notFound('key', params.id);
      keys.put(key);
      await snapshots.changed();
      return keyView(key);
    },

    async revokeKey({ params }) {
      const now = clock.wall_ms();
      const key = await store.revokeKey(knownId('key', params.id, 'key'), now);
      if (key === undefined) throw notFound('key', params.id);
      keys.put(key);
      await snapshots.changed();
      return keyView(key);
    },
  };
}

function keyView({ hash: _hash, ...key }: KeyRecord): KeyView {
  return {
    ...key,
    created_at: iso(key.created_at),
    expires_at: isoOrNull(key.expires_at),
    last_used_at: isoOrNull(key.last_used_at),
    revoked_at: isoOrNull(key.revoked_at),
  };
}

/** A key that has expired when it is made is a mistake, most likely of the time zone. */
function futureTime(time: string, now: number): number {
  const at = Date.parse(time);
  if (at > now) return at;
  throw new FlotillaError('invalid_request', `'expires_at' is in the past (it is ${iso(now)} here).`, {
    param: 'expires_at',
  });
}
