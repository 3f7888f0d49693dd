import { type RouteRecord, type Tier, matchesModel, newModelSpots } from '@flotilla/core';
import type { Places } from '../dispatch/places.ts';
import type { ModelSpot } from '../fleet/node.ts';
import { type Roster, isServed } from '../fleet/roster.ts';
import type { Providers } from './providers.ts';

/**
 * Routes: a snapshot of the store's, and with the roster and the providers the answer to where a public model is
 * served. A route outranks nodes that have a model of its name; a disabled one hides them.
 */
export interface ModelRoutes extends Places {
  load(records: readonly RouteRecord[]): void;
  list(): readonly RouteRecord[];
  find(id: string): RouteRecord | undefined;
  /** By its name or an alias. */
  named(name: string): RouteRecord | undefined;
  /** What a client's name for a model means: the route's name, or the model's full name on the nodes; null: a disabled route. */
  resolve(asked: string): string | null;
  /** Whether a key with these labels has anybody to serve it; a route of whose targets nothing is known yet has. */
  serves(model: string, labels: Readonly<Record<string, string>>): boolean;
  /** Names that clients may ask for, with when they came to be; what is not permitted or served for these labels left out. */
  offered(permitted: (name: string) => boolean, labels: Readonly<Record<string, string>>): OfferedModel[];
}

interface OfferedModel {
  id: string;
  created_at: number;
}

const NO_SPOTS = newModelSpots<ModelSpot>();
const NO_LABELS = {};

export function createModelRoutes(roster: Roster, providers: Pick<Providers, 'spots'>): ModelRoutes {
  let by_id = new Map<string, RouteRecord>();
  let by_name = new Map<string, RouteRecord>();
  /** Names of enabled routes, by where they go: `<provider id, or nothing> <model>`. */
  let by_target = new Map<string, string[]>();

  const routes: ModelRoutes = {
    load,
    list: () => [...by_id.values()],
    find: (id) => by_id.get(id),
    named: (name) => by_name.get(name),
    resolve,
    serves(model, labels) {
      const tiers = routes.tiers(model);
      return (
        isServed(labelled(tiers, labels)) ||
        (by_name.has(model) && tiers.every((tier) => tier.spots.size === 0))
      );
    },
    offered,
    tiers(model) {
      const route = by_name.get(model);
      if (route === undefined) return [{ model, labels: NO_LABELS, spots: roster.spots(model) }];
      return route.enabled ? route.targets.map(tierOf) : [];
    },
    servedBy(spot) {
      const { node, model } = spot;
      if (node.is_provider) return by_target.get(`${node.id} ${model}`) ?? [];
      const routed = by_target.get(` ${model}`);
      return routed === undefined ? [model] : [model, ...routed];
    },
    known: (model) => by_name.get(model)?.enabled ?? roster.spots(model).size > 0,
  };
  return routes;

  function load(records: readonly RouteRecord[]): void {
    by_id = new Map(records.map((route) => [route.id, route]));
    by_name = new Map(
      records.flatMap((route) => [route.name, ...route.aliases].map((name) => [name, route] as const)),
    );
    by_target = new Map();
    for (const { name, targets, enabled } of records) {
      if (!enabled) continue;
      for (const { provider, model } of targets) {
        // What clients call `llama3` may be `llama3:latest` on a node.
        const models = provider === null ? [model, `${model}:latest`] : [model];
        for (const each of models) {
          const key = `${provider ?? ''} ${each}`;
          by_target.set(key, [...new Set([...(by_target.get(key) ?? []), name])]);
        }
      }
    }
  }

  function tierOf({ provider, model, labels }: RouteRecord['targets'][number]): Tier<ModelSpot> {
    if (provider !== null) {
      return { model, labels, spots: providers.spots(provider, model) ?? NO_SPOTS };
    }
    const there = roster.resolve(model);
    return { model: there, labels, spots: roster.spots(there) };
  }

  function resolve(asked: string): string | null {
    const route = by_name.get(asked);
    if (route !== undefined) return route.enabled ? route.name : null;
    const model = roster.resolve(asked);
    if (model !== asked || roster.spots(model).size > 0) {
      // The nodes' fuller name may be a route's.
      const fuller = by_name.get(model);
      return fuller === undefined ? model : fuller.enabled ? fuller.name : null;
    }
    const latest = by_name.get(`${asked}:latest`);
    return latest === undefined ? asked : latest.enabled ? latest.name : null;
  }

  function offered(
    permitted: (name: string) => boolean,
    labels: Readonly<Record<string, string>>,
  ): OfferedModel[] {
    const found: OfferedModel[] = [];
    for (const model of roster.models()) {
      if (by_name.has(model) || !permitted(model)) continue;
      const spots = there([{ model, labels: NO_LABELS, spots: roster.spots(model) }], labels);
      if (!isServed(spots)) continue;
      found.push({ id: model, created_at: Math.min(...spots.map(({ node }) => node.record.created_at)) });
    }
    for (const [name, route] of by_name) {
      if (!route.enabled || !permitted(name)) continue;
      if (!isServed(there(routes.tiers(route.name), labels))) continue;
      found.push({ id: name, created_at: route.created_at });
    }
    return found;
  }
}

/** Spots that serve those who ask for these labels, whatever the state of their nodes. */
function labelled(tiers: readonly Tier<ModelSpot>[], labels: Readonly<Record<string, string>>): ModelSpot[] {
  return tiers.flatMap((tier) => {
    const agree = Object.keys(labels).every((name) => (tier.labels[name] ?? labels[name]) === labels[name]);
    return agree ? [...tier.spots.labelled({ ...tier.labels, ...labels }).all()] : [];
  });
}

/** Of these, those of nodes that are there, or may be in a moment. */
function there(tiers: readonly Tier<ModelSpot>[], labels: Readonly<Record<string, string>>): ModelSpot[] {
  return labelled(tiers, labels).filter(
    ({ node }) =>
      (node.state === 'online' || node.state === 'suspect') && !(node.is_provider && node.cordoned),
  );
}

/** What a key may not use does not exist for it: whether it may use this model, by the name it gave or the full one. */
export function mayUse(allowed: readonly string[], asked: string, model: string): boolean {
  return matchesModel(allowed, asked) || matchesModel(allowed, model);
}
