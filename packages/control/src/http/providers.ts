import type { Clock, Log, ProviderPatch, ProviderRecord, ProviderWrite, Random, Store } from '@flotilla/core';
import { FlotillaError, type ProviderView, makeId } from '@flotilla/protocol';
import type { Snapshots } from '../accounts/snapshots.ts';
import type { Sealer } from '../secrets/sealer.ts';
import type { Provider } from '../upstreams/provider.ts';
import type { Providers } from '../upstreams/providers.ts';
import { iso, isoOrNull } from './iso.ts';
import { knownId, notFound, pageOfList, pageRequest } from './paging.ts';
import { type Handlers, present } from './routing.ts';

export interface ProviderDeps {
  store: Store;
  providers: Providers;
  snapshots: Pick<Snapshots, 'changed'>;
  /** Null: no secret key is set, so no key of a provider can be kept. */
  sealer: Sealer | null;
  clock: Clock;
  random: Random;
  log: Log;
}

type ProviderRoutes =
  | 'listProviders'
  | 'createProvider'
  | 'showProvider'
  | 'updateProvider'
  | 'probeProvider'
  | 'deleteProvider';

/** More would each keep connections, probes and a place in every configuration's reading. */
const PROVIDERS_MOST = 500;

/** Every change is in force on this replica before its answer. A key goes in, and is in no answer. */
export function providerRoutes(deps: ProviderDeps): Pick<Handlers, ProviderRoutes> {
  const { store, providers, snapshots, clock, random, log } = deps;
  return {
    listProviders({ query }) {
      const all = [...providers.all()].sort((a, b) => (a.record.id < b.record.id ? 1 : -1));
      const { items, next_after } = pageOfList(
        all,
        pageRequest(query, 'provider'),
        ({ record }) => record.id,
        ({ record }, after) => record.id < after,
      );
      return { data: items.map(providerView), next_after };
    },

    async createProvider({ body }) {
      if ([...providers.all()].length >= PROVIDERS_MOST) {
        throw new FlotillaError(
          'conflict',
          `There are ${PROVIDERS_MOST} providers already: delete one first.`,
        );
      }
      const { api_key, ...rest } = body;
      const now = clock.wall_ms();
      const id = makeId('provider', now, random.bytes(10));
      const record: ProviderRecord = {
        ...rest,
        id,
        base_url: withoutSlash(body.base_url),
        key_sealed: sealed(api_key, id) ?? null,
        connect_timeout_ms: body.connect_timeout_ms ?? null,
        first_byte_timeout_ms: body.first_byte_timeout_ms ?? null,
        idle_timeout_ms: body.idle_timeout_ms ?? null,
        created_at: now,
      };
      const made = written(await store.insertProvider(record), id, body.name);
      log.info({ provider: id, name: body.name }, 'A provider was added.');
      return inForce(made);
    },

    showProvider: ({ params: { id } }) => providerView(found(id)),

    async updateProvider({ params, body }) {
      const id = providerId(params.id);
      const { api_key, base_url, ...rest } = present(body);
      const key_sealed = sealed(api_key, id);
      const patch: ProviderPatch = {
        ...rest,
        ...(base_url !== undefined && { base_url: withoutSlash(base_url) }),
        ...(key_sealed !== undefined && { key_sealed }),
      };
      return inForce(written(await store.updateProvider(id, patch), id, body.name));
    },

    async probeProvider({ params: { id } }) {
      const provider = found(id);
      await provider.probe();
      return providerView(provider);
    },

    async deleteProvider({ params }) {
      const id = providerId(params.id);
      const gone = await store.deleteProvider(id);
      if (gone === 'unknown') throw notFound('provider', id);
      if (gone !== 'deleted') {
        const routes = gone.used_by.slice(0, 5).join(', ');
        throw new FlotillaError(
          'conflict',
          `Routes send requests to this provider (${routes}): change or delete them first, or disable the provider.`,
        );
      }
      log.info({ provider: id }, 'A provider was deleted.');
      await snapshots.changed();
    },
  };

  function found(id: string): Provider {
    const provider = providers.find(providerId(id));
    if (provider === undefined) throw notFound('provider', id);
    return provider;
  }

  /** Undefined: nothing is said of the key; null: it has none. */
  function sealed(api_key: string | null | undefined, id: string): string | null | undefined {
    if (api_key === undefined || api_key === null) return api_key;
    if (deps.sealer === null) {
      throw new FlotillaError(
        'invalid_request',
        'A key can be kept only sealed, and FLOTILLA_SECRET_KEY is not set: set it, start the control plane again, ' +
          'then add the key.',
        { param: 'api_key' },
      );
    }
    return deps.sealer.seal(api_key, id);
  }

  async function inForce(record: ProviderRecord): Promise<ProviderView> {
    await snapshots.changed();
    const provider = providers.find(record.id);
    // Committed; where the store cannot be read just now, the next reading brings it into force.
    return provider === undefined ? unread(record) : providerView(provider);
  }
}

function providerId(id: string): string {
  return knownId('provider', id, 'provider');
}

function written(write: ProviderWrite, id: string, name: string | undefined): ProviderRecord {
  if ('provider' in write) return write.provider;
  if (write.refused === 'unknown') throw notFound('provider', id);
  throw new FlotillaError('name_taken', `Another provider is called ${name}: choose another name.`, {
    param: 'name',
  });
}

function withoutSlash(url: string): string {
  return url.replace(/\/+$/, '');
}

function providerView(provider: Provider): ProviderView {
  const { record, node } = provider;
  return {
    ...shown(record),
    health: provider.health,
    reason: provider.reason,
    alarms: [...provider.alarms],
    in_flight: node.ledger.holders.size,
    models: provider.models === null ? null : [...provider.models],
    probed_at: isoOrNull(provider.probed_at),
  };
}

function unread(record: ProviderRecord): ProviderView {
  const reason = 'it is saved, and not in force here yet';
  return {
    ...shown(record),
    health: 'degraded',
    reason,
    alarms: [],
    in_flight: 0,
    models: null,
    probed_at: null,
  };
}

function shown({ key_sealed, ...record }: ProviderRecord) {
  return { ...record, has_key: key_sealed !== null, created_at: iso(record.created_at) };
}
