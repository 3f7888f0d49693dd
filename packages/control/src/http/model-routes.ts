import type {
  Clock,
  Log,
  Random,
  RoutePatch,
  RouteRecord,
  RouteTarget,
  RouteWrite,
  Store,
} from '@flotilla/core';
import { FlotillaError, type RouteView, makeId } from '@flotilla/protocol';
import type { Keys } from '../accounts/keys.ts';
import type { Snapshots } from '../accounts/snapshots.ts';
import { explainRoute } from '../upstreams/explain-route.ts';
import type { ModelRoutes } from '../upstreams/model-routes.ts';
import type { Providers } from '../upstreams/providers.ts';
import { iso } from './iso.ts';
import { knownId, notFound, pageOfList, pageRequest } from './paging.ts';
import { type Handlers, present } from './routing.ts';

export interface ModelRouteDeps {
  store: Store;
  routes: ModelRoutes;
  providers: Providers;
  keys: Keys;
  snapshots: Pick<Snapshots, 'changed'>;
  clock: Clock;
  random: Random;
  log: Log;
}

type ModelRouteNames =
  | 'listRoutes'
  | 'createRoute'
  | 'explainRoute'
  | 'showRoute'
  | 'updateRoute'
  | 'deleteRoute';

const ROUTES_MOST = 5000;

/** A target as it is asked for: what is left out is the route's own. */
interface AskedTarget {
  provider?: string | undefined;
  model?: string | undefined;
  labels: Record<string, string>;
}

/** Every change is in force on this replica before its answer; requests that wait follow it. */
export function modelRouteRoutes(deps: ModelRouteDeps): Pick<Handlers, ModelRouteNames> {
  const { store, routes, providers, keys, snapshots, clock, random, log } = deps;
  return {
    listRoutes({ query }) {
      const all = [...routes.list()].sort((a, b) => (a.id < b.id ? 1 : -1));
      const { items, next_after } = pageOfList(
        all,
        pageRequest(query, 'route'),
        ({ id }) => id,
        ({ id }, after) => id < after,
      );
      return { data: items.map(routeView), next_after };
    },

    async createRoute({ body }) {
      if (routes.list().length >= ROUTES_MOST) {
        throw new FlotillaError('conflict', `There are ${ROUTES_MOST} routes already: delete one first.`);
      }
      const now = clock.wall_ms();
      const record: RouteRecord = {
        id: makeId('route', now, random.bytes(10)),
        name: body.name,
        aliases: aliasesOf(body.aliases, body.name),
        targets: body.targets.map((target) => targetOf(target, body.name)),
        enabled: body.enabled,
        created_at: now,
      };
      const made = written(await store.insertRoute(record), record.id);
      log.info({ route: made.id, name: made.name }, 'A route was made.');
      await snapshots.changed();
      return routeView(made);
    },

    explainRoute({ body }) {
      const key = body.key === undefined ? undefined : keys.find(knownId('key', body.key, 'key'));
      if (body.key !== undefined && key === undefined) throw notFound('key', body.key);
      return explainRoute({ routes, providers }, { ...body, key });
    },

    showRoute({ params: { id } }) {
      const route = routes.find(routeId(id));
      if (route === undefined) throw notFound('route', id);
      return routeView(route);
    },

    async updateRoute({ params, body }) {
      const id = routeId(params.id);
      const before = routes.find(id);
      if (before === undefined) throw notFound('route', id);
      const { targets, aliases, ...rest } = present(body);
      const name = rest.name ?? before.name;
      const patch: RoutePatch = {
        ...rest,
        ...(targets !== undefined && { targets: targets.map((target) => targetOf(target, name)) }),
        ...(aliases !== undefined && { aliases: aliasesOf(aliases, name) }),
        // A name cannot be its own alias.
        ...(aliases === undefined && rest.name !== undefined && { aliases: aliasesOf(before.aliases, name) }),
      };
      const route = written(await store.updateRoute(id, patch), id);
      await snapshots.changed();
      return routeView(route);
    },

    async deleteRoute({ params }) {
      const id = routeId(params.id);
      if (!(await store.deleteRoute(id))) throw notFound('route', id);
      log.info({ route: id }, 'A route was deleted.');
      await snapshots.changed();
    },
  };

  function targetOf({ provider, model, labels }: AskedTarget, name: string): RouteTarget {
    const own = { model: model ?? name, labels };
    if (provider === undefined) return { provider: null, ...own };
    for (const { record } of providers.all()) {
      if (record.id === provider || record.name === provider) return { provider: record.id, ...own };
    }
    throw noProvider(provider);
  }

  function routeView({ targets, created_at, ...route }: RouteRecord): RouteView {
    return {
      ...route,
      targets: targets.map((target) => ({
        ...target,
        provider_name:
          target.provider === null ? null : (providers.find(target.provider)?.record.name ?? null),
      })),
      created_at: iso(created_at),
    };
  }
}

function routeId(id: string): string {
  return knownId('route', id, 'route');
}

/** Each once, and not the name itself. */
function aliasesOf(aliases: readonly string[], name: string): string[] {
  return [...new Set(aliases)].filter((alias) => alias !== name);
}

function written(write: RouteWrite, id: string): RouteRecord {
  if ('route' in write) return write.route;
  switch (write.refused) {
    case 'unknown':
      throw notFound('route', id);
    case 'no_provider':
      throw noProvider(write.name);
    case 'name_taken':
      throw new FlotillaError(
        'name_taken',
        `Another route has the name or alias ${JSON.stringify(write.name)}: choose another, or change that one.`,
        { param: 'name' },
      );
  }
}

function noProvider(name: string): FlotillaError {
  return new FlotillaError(
    'invalid_request',
    `There is no provider ${JSON.stringify(name)}: GET /api/v1/providers lists them.`,
    { param: 'targets' },
  );
}
