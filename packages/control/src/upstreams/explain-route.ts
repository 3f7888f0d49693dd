import {
  type KeyRecord,
  type PlacementRequest,
  REFUSAL_TEXT,
  type Refusal,
  placeInOrder,
  refusal,
  requestIn,
} from '@flotilla/core';
import type { Operation, RouteExplanation } from '@flotilla/protocol';
import type { ModelSpot } from '../fleet/node.ts';
import { type ModelRoutes, mayUse } from './model-routes.ts';
import type { Providers } from './providers.ts';

/** Of so many nodes of a target is told; of more, those first that could take it. */
const PLACES_MOST = 100;
/** What the scheduler calls by a node's word is another thing with a provider. */
const PROVIDER_TEXT: Partial<Record<Refusal, string>> = {
  cordoned: 'it is disabled',
  full: 'it is asked as much at once as it may be',
};

/** Where a request would go now, by the same filter and the same choice as a real one; nothing is asked, or kept. */
export function explainRoute(
  { routes, providers }: { routes: ModelRoutes; providers: Providers },
  asked: { model: string; operation: Operation; key: KeyRecord | undefined },
): RouteExplanation {
  const { model: name, operation, key } = asked;
  const route = routes.named(name) ?? routes.named(`${name}:latest`);
  const model = routes.resolve(name);
  const of = {
    model: name,
    route: model === null ? (route?.name ?? null) : (routes.named(model)?.name ?? null),
  };
  if (model === null) {
    const why = `The route ${route?.name ?? name} is disabled: it answers 404, whatever nodes have a model of its name.`;
    return { ...of, outcome: 'refused', summary: why, targets: [] };
  }
  if (key !== undefined && !mayUse(key.allowed_models, name, model)) {
    return { ...of, outcome: 'refused', summary: `The key ${key.name} may not use it: 404.`, targets: [] };
  }
  if (!routes.known(model)) {
    const why = 'No route has this name and no node has such a model: 404.';
    return { ...of, outcome: 'refused', summary: why, targets: [] };
  }
  const request: PlacementRequest = {
    model,
    operation,
    labels: key?.node_labels ?? {},
    pin: null,
    avoid: new Set(),
    refused_by: new Set(),
    affinity: null,
  };
  const tiers = routes.tiers(model);
  const placement = placeInOrder(request, tiers, () => 0.5);
  const spot = placement.kind === 'placed' ? placement.spot : null;
  let taken = false;
  const targets = tiers.map((tier, index) => {
    const own = requestIn(request, tier);
    const places = [...tier.spots.all()].map((each) =>
      placeOf(each, own === null ? 'labels' : refusal(own, each)),
    );
    const chosen = !taken && spot !== null && tier.spots.of(spot.node.id).includes(spot);
    taken ||= chosen;
    places.sort((a, b) => Number(a.reason !== null) - Number(b.reason !== null));
    const provider = routes.named(model)?.targets[index]?.provider ?? null;
    return {
      provider: provider === null ? null : (providers.find(provider)?.record.name ?? provider),
      model: tier.model,
      chosen,
      places: places.slice(0, PLACES_MOST),
    };
  });
  return { ...of, ...summaryOf(spot, placement.kind), targets };

  function placeOf({ node }: ModelSpot, refused: Refusal | null) {
    const provider = node.is_provider ? providers.find(node.id) : undefined;
    const text = refused === null ? null : ((provider && PROVIDER_TEXT[refused]) ?? REFUSAL_TEXT[refused]);
    const down = refused === 'backend_down' ? provider?.reason : undefined;
    return {
      node: node.is_provider ? null : node.id,
      name: node.record.name,
      verdict: refused ?? 'could take it',
      reason: down ?? text,
    };
  }
}

function summaryOf(
  spot: ModelSpot | null,
  kind: 'placed' | 'wait' | 'nobody',
): Pick<RouteExplanation, 'outcome' | 'summary'> {
  if (spot !== null) {
    const where = spot.node.is_provider
      ? `the provider ${spot.node.record.name}`
      : `a node like ${spot.node.record.name}`;
    return { outcome: 'served', summary: `It would go to ${where}, as ${spot.model}.` };
  }
  if (kind === 'wait') {
    return { outcome: 'waits', summary: 'It would wait: who could serve it is busy, or may come back.' };
  }
  return { outcome: 'refused', summary: 'Nobody can serve it now, and nobody who could may return: 503.' };
}
