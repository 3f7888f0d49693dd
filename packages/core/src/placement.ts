import type { Health, NodeState, Operation } from '@flotilla/protocol';

/**
 * Which node serves a request. A filter with a reason for each refusal, then a preference: session affinity while the
 * node is not hot, model already loaded, reserved ÷ capacity, recent failures; ties at random. The same filter answers
 * `explain`, so what an operator reads is what the scheduler did.
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
  /** The node that holds this conversation's prefix in its cache. */
  readonly affinity: string | null;
}

/** A node as placement sees it. The roster keeps one object for each and changes it in place. */
export interface PlacementNode {
  readonly id: string;
  readonly state: NodeState;
  readonly stalled: boolean;
  readonly cordoned: boolean;
  readonly draining: boolean;
  readonly labels: Readonly<Record<string, string>>;
  /** Null: every model. */
  readonly allowed_models: readonly string[] | null;
  readonly failures: number;
}

/** One place where one model is served: a backend of a node, with its pool's count of slots. */
export interface Spot {
  readonly node: PlacementNode;
  readonly backend: string;
  readonly operations: readonly Operation[];
  readonly loaded: boolean;
  readonly backend_health: Health;
  readonly model_health: Health;
  readonly slots: { readonly reserved: number; readonly capacity: number };
}

/** Why a spot is refused. Only `full` passes by itself, without anything being mended. */
export type Refusal =
  | 'operation'
  | 'pinned_elsewhere'
  | 'not_allowed'
  | 'labels'
  | 'revoked'
  | 'offline'
  | 'pending'
  | 'suspect'
  | 'cordoned'
  | 'draining'
  | 'stalled'
  | 'backend_down'
  | 'model_down'
  | 'no_slots'
  | 'full';

export const REFUSAL_TEXT: Record<Refusal, string> = {
  operation: 'its model does not do this operation',
  pinned_elsewhere: 'the job is pinned to another node',
  not_allowed: "the node's allow-list does not have the model",
  labels: 'it lacks a label that the key asks for',
  revoked: 'its credential was withdrawn',
  offline: 'it is offline',
  pending: 'it is connecting',
  suspect: 'it has not been heard of; it may come back',
  cordoned: 'it is cordoned',
  draining: 'it is draining',
  stalled: "its daemon's main thread stands still",
  backend_down: 'the backend is down',
  model_down: 'the model is down on it',
  no_slots: 'its pool has no slots',
  full: 'all its slots are taken',
};

/** An affine node with this share of its slots taken is hot: its cache is worth less than a free slot elsewhere. */
const HOT = 0.75;

/** Why this spot cannot take the request now; null: it can. */
export function refusal(request: PlacementRequest, spot: Spot): Refusal | null {
  const { node } = spot;
  if (request.pin !== null && request.pin !== node.id) return 'pinned_elsewhere';
  if (!spot.operations.includes(request.operation)) return 'operation';
  if (node.allowed_models !== null && !matchesModel(node.allowed_models, request.model)) return 'not_allowed';
  if (!hasLabels(node.labels, request.labels)) return 'labels';
  if (node.state !== 'online') return node.state;
  if (node.draining) return 'draining';
  if (node.cordoned) return 'cordoned';
  if (node.stalled) return 'stalled';
  if (spot.backend_health === 'down') return 'backend_down';
  if (spot.model_health === 'down') return 'model_down';
  if (spot.slots.capacity === 0) return 'no_slots';
  if (spot.slots.reserved >= spot.slots.capacity) return 'full';
  return null;
}

export type Placement =
  | { kind: 'placed'; spot: Spot }
  /** Somebody can serve it when a slot is free, or may come back. */
  | { kind: 'wait' }
  /** Nobody can, and nobody who could may return by itself. */
  | { kind: 'nobody'; refusals: Refusal[] };

/** Chooses among the spots of one model, in one pass. */
export function place(request: PlacementRequest, spots: Iterable<Spot>, random: () => number): Placement {
  let best: Spot | null = null;
  let best_score = Infinity;
  let avoided: Spot | null = null;
  let waits = false;
  const refusals = new Set<Refusal>();
  for (const spot of spots) {
    const refused = refusal(request, spot);
    const avoid = request.avoid.has(spot.node.id);
    if (refused !== null) {
      refusals.add(refused);
      // A full node that has not failed this job is worth waiting for; so is anybody where only avoided ones remain.
      if (refused === 'full' || refused === 'suspect' || refused === 'pending') waits = true;
      continue;
    }
    if (avoid) {
      avoided ??= spot;
      continue;
    }
    const score = scoreOf(request, spot) + random() * 1e-3;
    if (score < best_score) {
      best = spot;
      best_score = score;
    }
  }
  if (best !== null) return { kind: 'placed', spot: best };
  if (avoided !== null && !refusals.has('full')) return { kind: 'placed', spot: avoided };
  if (waits || avoided !== null) return { kind: 'wait' };
  return { kind: 'nobody', refusals: [...refusals] };
}

/** Lower is better; each preference outweighs all after it. */
function scoreOf(request: PlacementRequest, spot: Spot): number {
  const { reserved, capacity } = spot.slots;
  const load = reserved / capacity;
  let score = load + Math.min(spot.node.failures, 10) * 0.05;
  if (spot.backend_health === 'degraded' || spot.model_health === 'degraded') score += 10;
  if (!spot.loaded) score += 100;
  if (request.affinity !== spot.node.id || load >= HOT) score += 1000;
  return score;
}

/** Whether a list of model names, a trailing `*` matching any ending, has this one. An empty list has all. */
export function matchesModel(list: readonly string[], model: string): boolean {
  if (list.length === 0) return true;
  return list.some((entry) => (entry.endsWith('*') ? model.startsWith(entry.slice(0, -1)) : entry === model));
}

function hasLabels(has: Readonly<Record<string, string>>, wants: Readonly<Record<string, string>>): boolean {
  for (const name in wants) if (has[name] !== wants[name]) return false;
  return true;
}
