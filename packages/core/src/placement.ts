import type { Operation } from '@flotilla/protocol';
import type { ModelSpots } from './model-spots.ts';
import { type PlacementNode, type Refusal, type Spot, closedBy, hasLabels, isTaken } from './spot.ts';

/**
 * Which node serves a request. A filter with a reason for each refusal, then a preference: session affinity while the
 * node is not hot, model already loaded, health, reserved ÷ capacity and recent failures; ties at random. The same
 * filter answers `explain`, so what an operator reads is what the scheduler did.
 */
export interface PlacementRequest {
  readonly model: string;
  readonly operation: Operation;
  /** Labels that a node must carry, each with this value. */
  readonly labels: Readonly<Record<string, string>>;
  /** Only this node. */
  readonly pin: string | null;
  /** Nodes that have already failed this job: taken only where nobody else could serve it. */
  readonly avoid: ReadonlySet<string>;
  /** Nodes that have said that they can never take this job: its body is too large for them, say. */
  readonly refused_by: ReadonlySet<string>;
  /** The node that holds this conversation's prefix in its cache. */
  readonly affinity: string | null;
  /**
   * Detached work: never given to a second node before the first has stopped, which that one must see to; and only to
   * nodes that can write it down.
   */
  readonly fenced?: true;
}

/** An affine node with this share of its slots taken is hot: its cache is worth less than a free slot elsewhere. */
const HOT = 0.75;

/** Why this spot cannot take the request now; null: it can. */
export function refusal(request: PlacementRequest, spot: Spot): Refusal | null {
  return misfit(request, spot) ?? closedBy(spot);
}

/** Why this request is not for this spot, whatever the spot is doing. */
function misfit(request: PlacementRequest, { node, operations }: Spot): Refusal | null {
  if (request.pin !== null && request.pin !== node.id) return 'pinned_elsewhere';
  if (!operations.includes(request.operation)) return 'operation';
  if (request.refused_by.has(node.id)) return 'refused';
  if (node.allowed_models !== null && !matchesModel(node.allowed_models, request.model)) return 'not_allowed';
  if (request.fenced === true && node.unfenced) return 'unfenced';
  if (!hasLabels(node.labels, request.labels)) return 'labels';
  // Last: it passes by itself, the others do not.
  if (request.fenced === true && node.journal_down === true) return 'journal_down';
  return null;
}

export type Placement<S extends Spot = Spot> =
  | { kind: 'placed'; spot: S }
  /** Somebody can serve it when a slot is free, or may come back. */
  | { kind: 'wait' }
  /** Nobody can, and nobody who could may return by itself. */
  | { kind: 'nobody'; refusals: Refusal[] };

/** Of so many open spots each is looked at. */
const LOOKS_MOST = 32;
/**
 * Of more so many are drawn at random, and the best of these is taken: 19 times of 20 it is among the freest sixth of all. Two
 * would do to keep any from filling up before the others (Mitzenmacher, The Power of Two Choices, 2001).
 */
export const DRAWS = 16;

/** Loads that differ by less are alike: chance decides between them. */
const TIE = 1e-3;

/**
 * Chooses among the spots of one model. The cost does not grow with their number, unless most of them cannot take this
 * request for what they are: an operation they lack, an allow-list; then all of them may be looked at.
 */
export function place<S extends Spot>(
  request: PlacementRequest,
  all: ModelSpots<S>,
  random: () => number,
): Placement<S> {
  const spots = all.labelled(request.labels);
  const spot = affine(request, spots) ?? bestOpen(request, spots, random);
  if (spot !== undefined) return { kind: 'placed', spot };
  const second = secondBest(request, spots);
  if (second !== null) return second.kind === 'better' ? { kind: 'wait' } : second;
  const refusals = new Set<Refusal>();
  for (const other of all.all()) refusals.add(refusal(request, other)!);
  return { kind: 'nobody', refusals: [...refusals] };
}

/** One place in a route's order: the spots of a model there, of which only those with the labels count. */
export interface Tier<S extends Spot = Spot> {
  /** The model's name there. */
  readonly model: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly spots: ModelSpots<S>;
}

/**
 * Chooses in a route's order: the first tier that can take the request now, and has not failed it, whatever the later
 * ones could do. Where none can, what `place` says of one tier holds for all of them: a full one that has not failed
 * the job is waited for before one that has is tried again.
 */
export function placeInOrder<S extends Spot>(
  request: PlacementRequest,
  tiers: readonly Tier<S>[],
  random: () => number,
): Placement<S> {
  let avoided: S | undefined;
  let waits = false;
  let better = false;
  for (const tier of tiers) {
    const own = requestIn(request, tier);
    if (own === null) continue;
    const spots = tier.spots.labelled(own.labels);
    const spot = affine(own, spots) ?? bestOpen(own, spots, random);
    if (spot !== undefined) return { kind: 'placed', spot };
    const second = secondBest(own, spots);
    if (second?.kind === 'placed') avoided ??= second.spot;
    else if (second?.kind === 'better') better = true;
    else if (second?.kind === 'wait') waits = true;
  }
  if (better) return { kind: 'wait' };
  if (avoided !== undefined) return { kind: 'placed', spot: avoided };
  return waits ? { kind: 'wait' } : { kind: 'nobody', refusals: refusalsOf(request, tiers) };
}

function refusalsOf(request: PlacementRequest, tiers: readonly Tier[]): Refusal[] {
  const refusals = new Set<Refusal>();
  for (const tier of tiers) {
    const own = requestIn(request, tier);
    if (own === null) refusals.add('labels');
    else for (const spot of tier.spots.all()) refusals.add(refusal(own, spot)!);
  }
  return [...refusals];
}

/** The request as a tier reads it; null: it asks for a label with another value than the tier does. */
export function requestIn(request: PlacementRequest, tier: Tier): PlacementRequest | null {
  if (tier.model === request.model && Object.keys(tier.labels).length === 0) return request;
  for (const name in tier.labels) {
    const wanted = request.labels[name];
    if (wanted !== undefined && wanted !== tier.labels[name]) return null;
  }
  return { ...request, model: tier.model, labels: { ...request.labels, ...tier.labels } };
}

/** Where no fresh spot is open: one that has failed the job, or what there is to wait for; `better` than to try it. */
function secondBest<S extends Spot>(
  request: PlacementRequest,
  spots: ModelSpots<S>,
): { kind: 'placed'; spot: S } | { kind: 'better' } | { kind: 'wait' } | null {
  const avoided = avoidedOpen(request, spots);
  let waits = false;
  // A full node that has not failed this job is worth waiting for; so is anybody where only avoided ones remain.
  for (const other of spots.patient) {
    if (misfit(request, other) !== null) continue;
    if (isTaken(closedBy(other)) && !request.avoid.has(other.node.id)) return { kind: 'better' };
    waits = true;
  }
  if (avoided !== undefined) return { kind: 'placed', spot: avoided };
  return waits ? { kind: 'wait' } : null;
}

/** Whether a node that has not failed this job could serve it, at once or when a slot is free. */
export function servedElsewhere(request: PlacementRequest, all: ModelSpots, node: string): boolean {
  const spots = all.labelled(request.labels);
  const can = (spot: Spot) =>
    spot.node.id !== node && !request.avoid.has(spot.node.id) && misfit(request, spot) === null;
  return (
    spots.open.some((tier) => tier.some(can)) ||
    spots.patient.some((spot) => isTaken(closedBy(spot)) && can(spot))
  );
}

/** The same over a route's order. */
export function servedElsewhereInOrder(
  request: PlacementRequest,
  tiers: readonly Tier[],
  node: string,
): boolean {
  return tiers.some((tier) => {
    const own = requestIn(request, tier);
    return own !== null && servedElsewhere(own, tier.spots, node);
  });
}

/** The node that holds the conversation's prefix, while it is not hot. */
function affine<S extends Spot>(request: PlacementRequest, spots: ModelSpots<S>): S | undefined {
  if (request.affinity === null || request.avoid.has(request.affinity)) return undefined;
  return spots
    .of(request.affinity)
    .find(
      ({ slots }, index, own) =>
        slots.reserved / slots.capacity < HOT && refusal(request, own[index]!) === null,
    );
}

function bestOpen<S extends Spot>(
  request: PlacementRequest,
  spots: ModelSpots<S>,
  random: () => number,
): S | undefined {
  for (const tier of spots.open) {
    const drawn = tier.length <= LOOKS_MOST ? undefined : bestOf(request, tier, DRAWS, random);
    const best = drawn ?? bestOf(request, tier, tier.length, random);
    if (best !== undefined) return best;
  }
  return undefined;
}

/** @param looks at so many, drawn at random where that is fewer than there are */
function bestOf<S extends Spot>(
  request: PlacementRequest,
  spots: readonly S[],
  looks: number,
  random: () => number,
): S | undefined {
  let best: S | undefined;
  let best_score = Infinity;
  const drawn = looks < spots.length;
  for (let n = 0; n < looks; n++) {
    // An idle one that was drawn is as good as any; in a list, the first would get all the work.
    if (drawn && best_score < TIE) break;
    const spot = spots[drawn ? Math.floor(random() * spots.length) : n]!;
    // What its node has failed and whether it fits is asked of the few that would be the best yet: in a large fleet each
    // look at a spot's parts is a look at memory that no cache holds.
    const least = takenShare(spot) + random() * TIE;
    if (least >= best_score) continue;
    const score = least + failedShare(spot.node);
    if (score >= best_score) continue;
    if (misfit(request, spot) !== null || request.avoid.has(spot.node.id)) continue;
    best = spot;
    best_score = score;
  }
  return best;
}

/** A node that has failed this job, and could take it. */
function avoidedOpen<S extends Spot>(request: PlacementRequest, spots: ModelSpots<S>): S | undefined {
  for (const id of request.avoid) {
    const spot = spots.of(id).find((own) => refusal(request, own) === null);
    if (spot !== undefined) return spot;
  }
  return undefined;
}

function takenShare({ slots }: Spot): number {
  return slots.reserved / slots.capacity;
}

/** What a node has lately failed, as a share of slots that it weighs as much as. */
function failedShare({ failures }: PlacementNode): number {
  return Math.min(failures, 10) * 0.05;
}

/** Whether a list of model names, a trailing `*` matching any ending, has this one. An empty list has all. */
export function matchesModel(list: readonly string[], model: string): boolean {
  if (list.length === 0) return true;
  return list.some((entry) => (entry.endsWith('*') ? model.startsWith(entry.slice(0, -1)) : entry === model));
}
