import type { Health, NodeState, Operation } from '@flotilla/protocol';

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
  /** It does not stop its work by its own clock when its lease ends. */
  readonly unfenced: boolean;
  /** It is connected, and says that it can take on no detached work. */
  readonly journal_down?: boolean;
  /** It has asked to be left alone for a while, and is then there again. */
  readonly resting?: boolean;
  /** It is linked to another replica, which gives its slots away. */
  readonly elsewhere?: boolean;
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

/** Why a spot is refused. `full`, `resting` and `elsewhere` pass by themselves, without anything being mended. */
export type Refusal =
  | 'operation'
  | 'refused'
  | 'pinned_elsewhere'
  | 'not_allowed'
  | 'unfenced'
  | 'journal_down'
  | 'labels'
  | 'revoked'
  | 'offline'
  | 'pending'
  | 'suspect'
  | 'cordoned'
  | 'draining'
  | 'stalled'
  | 'resting'
  | 'backend_down'
  | 'model_down'
  | 'no_slots'
  | 'elsewhere'
  | 'full';

export const REFUSAL_TEXT: Record<Refusal, string> = {
  operation: 'its model does not do this operation',
  refused: 'it has said that it cannot take this request',
  pinned_elsewhere: 'the job is pinned to another node',
  not_allowed: "the node's allow-list does not have the model",
  unfenced: 'it does not stop by itself when its lease ends, as detached work asks for',
  journal_down: 'it takes no detached work now',
  labels: 'it lacks a label that the key asks for',
  revoked: 'its credential was withdrawn',
  offline: 'it is offline',
  pending: 'it is connecting',
  suspect: 'it has not been heard of; it may come back',
  cordoned: 'it is cordoned',
  draining: 'it is draining',
  stalled: "its daemon's main thread stands still",
  resting: 'it has asked to be left alone for a while',
  backend_down: 'the backend is down',
  model_down: 'the model is down on it',
  no_slots: 'its pool has no slots',
  elsewhere: 'it is linked to another replica, which takes the job when it has a slot free',
  full: 'all its slots are taken',
};

/** Why this spot takes no request at all now; null: it is open. */
export function closedBy({ node, slots, backend_health, model_health }: Spot): Refusal | null {
  if (node.state !== 'online') return node.state;
  if (node.draining) return 'draining';
  if (node.cordoned) return 'cordoned';
  if (node.stalled) return 'stalled';
  if (node.resting === true) return 'resting';
  if (backend_health === 'down') return 'backend_down';
  if (model_health === 'down') return 'model_down';
  if (slots.capacity === 0) return 'no_slots';
  if (node.elsewhere === true) return 'elsewhere';
  if (slots.reserved >= slots.capacity) return 'full';
  return null;
}

/** Whether what waits for a slot of this spot may get one without anything being mended. */
export function isTaken(closed: Refusal | null): boolean {
  return closed === 'full' || closed === 'elsewhere';
}

/** Whether each label that is wanted is there, with the wanted value. */
export function hasLabels(
  has: Readonly<Record<string, string>>,
  wants: Readonly<Record<string, string>>,
): boolean {
  for (const name in wants) if (has[name] !== wants[name]) return false;
  return true;
}
