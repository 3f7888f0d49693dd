import {
  type PlacementRequest,
  type Random,
  type Tier,
  placeInOrder,
  refusal,
  requestIn,
} from '@flotilla/core';
import type { ModelSpot } from '../fleet/node.ts';

/**
 * Where the requests for a public model may go, as it is now: nothing is kept of it with a job, so that what waits
 * follows a route that is changed.
 */
export interface Places {
  /** In the order in which they are tried. A model without a route: the nodes that have it. */
  tiers(model: string): readonly Tier<ModelSpot>[];
  /** The public models whose requests this spot may serve. */
  servedBy(spot: ModelSpot): readonly string[];
  /** Whether anybody has ever been heard of who could serve it, or a route says who should. */
  known(model: string): boolean;
}

/** Whether a slot that is free here may be its: who has failed it gets it again only where nobody else could serve it. */
export function mayTake(places: Places, random: Random, asked: PlacementRequest, spot: ModelSpot): boolean {
  const tiers = places.tiers(asked.model);
  const fits = tiers.some((tier) => {
    const own = tier.spots.of(spot.node.id).includes(spot) ? requestIn(asked, tier) : null;
    return own !== null && refusal(own, spot) === null;
  });
  if (!fits) return false;
  if (!asked.avoid.has(spot.node.id)) return true;
  const placement = placeInOrder(asked, tiers, random.next);
  return placement.kind === 'placed' && placement.spot === spot;
}
