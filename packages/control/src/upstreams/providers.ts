import { Deadlines, type ModelSpots, type ProviderRecord, type RouteRecord } from '@flotilla/core';
import type { ModelSpot } from '../fleet/node.ts';
import type { createProvider, Provider, ProviderDeps } from './provider.ts';

/** The providers that this replica asks: a snapshot of the store's, each with its connections, health and slots. */
export interface Providers {
  all(): Iterable<Provider>;
  find(id: string): Provider | undefined;
  /** Where a provider serves a model that a route sends to it. */
  spots(id: string, model: string): ModelSpots<ModelSpot> | undefined;
  /** Before the first of them is there to be loaded: what asks them, an HTTP client, is much, and most fleets have none. */
  prepare(): Promise<void>;
  load(records: readonly ProviderRecord[], routes: readonly RouteRecord[]): void;
  close(): Promise<void>;
}

export function createProviders(deps: Omit<ProviderDeps, 'deadlines'>): Providers {
  const providers = new Map<string, Provider>();
  const deadlines = new Deadlines(deps.clock);
  let create: typeof createProvider | null = null;

  return {
    all: () => providers.values(),
    find: (id) => providers.get(id),
    spots: (id, model) => providers.get(id)?.spots(model),
    async prepare() {
      create ??= (await import('./provider.ts')).createProvider;
    },
    load(records, routes) {
      const wanted = modelsOf(routes);
      const seen = new Set<string>();
      for (const record of records) {
        seen.add(record.id);
        let provider = providers.get(record.id);
        if (provider === undefined) {
          provider = create!(record, { ...deps, deadlines });
          providers.set(record.id, provider);
        }
        provider.take(record, wanted.get(record.id) ?? new Set());
      }
      for (const [id, provider] of providers) {
        if (seen.has(id)) continue;
        providers.delete(id);
        void provider.close();
      }
    },
    async close() {
      await Promise.all([...providers.values()].map((provider) => provider.close()));
      deadlines.stop();
    },
  };
}

/** The models that enabled routes send to each provider. */
function modelsOf(routes: readonly RouteRecord[]): Map<string, Set<string>> {
  const models = new Map<string, Set<string>>();
  for (const { targets, enabled } of routes) {
    if (!enabled) continue;
    for (const { provider, model } of targets) {
      if (provider === null) continue;
      models.set(provider, (models.get(provider) ?? new Set()).add(model));
    }
  }
  return models;
}
