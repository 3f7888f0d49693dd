import {
  type Clock,
  type ModelSpots,
  type NodeRecord,
  type PoolLedger,
  type Timings,
  isStalled,
  matchesModel,
  newModelSpots,
  resizePools,
} from '@flotilla/core';
import type { BackendHealth, Descriptor, Health } from '@flotilla/protocol';
import { type FleetNode, type ModelSpot, newFleetNode } from './node.ts';

/**
 * The nodes this replica knows, and where each model is served. Filled from the store's snapshot, then kept by the
 * nodes' links; what the store says of the operator's wishes wins, what a link says of liveness wins.
 */
export interface Roster {
  all(): Iterable<FleetNode>;
  readonly size: number;
  find(id: string): FleetNode | undefined;
  /** The node whose credential this is, by the credential's hash. */
  byCredential(hash: string, now: number): { node: FleetNode; revoked: boolean } | undefined;
  /** Every place where a model is served, whatever the state of its node. */
  spots(model: string): ModelSpots<ModelSpot>;
  /** The model's full name: as given, or with `:latest`. */
  resolve(model: string): string;
  models(): Iterable<string>;
  /**
   * Takes over the store's snapshot.
   * @param unreadable nodes of which the store could not read the row: they stay as they are
   * @returns nodes that are new, changed (with the new ones) or gone
   */
  load(records: readonly NodeRecord[], unreadable: readonly string[]): LoadedNodes;
  describe(node: FleetNode, descriptor: Descriptor, hash: string): void;
  /** @returns whether anything became worse or better for placement */
  setHealth(node: FleetNode, backends: readonly BackendHealth[]): boolean;
  /** Brings the placement view in step with the node's liveness and record. @returns whether it changed */
  sync(node: FleetNode): boolean;
}

interface LoadedNodes {
  added: FleetNode[];
  changed: FleetNode[];
  removed: FleetNode[];
}

const NO_SPOTS = newModelSpots<ModelSpot>();

export function createRoster(clock: Clock, timings: Timings): Roster {
  const nodes = new Map<string, FleetNode>();
  const credentials = new Map<string, { node: FleetNode; expires_at: number | null }>();
  const by_model = new Map<string, ModelSpots<ModelSpot>>();

  return {
    all: () => nodes.values(),
    get size() {
      return nodes.size;
    },
    find: (id) => nodes.get(id),
    byCredential(hash, now) {
      const found = credentials.get(hash);
      if (found === undefined) return undefined;
      const expired = found.expires_at !== null && found.expires_at <= now;
      return { node: found.node, revoked: expired || found.node.record.revoked_at !== null };
    },
    spots: (model) => by_model.get(model) ?? NO_SPOTS,
    resolve: (model) => (!by_model.has(model) && by_model.has(`${model}:latest`) ? `${model}:latest` : model),
    models: () => by_model.keys(),
    load,
    describe(node, descriptor, hash) {
      node.descriptor = descriptor;
      node.descriptor_hash = hash;
      placeSpots(node);
    },
    setHealth(node, backends) {
      const changed = setHealth(node, backends);
      if (changed) moved(node);
      return changed;
    },
    sync,
  };

  function load(records: readonly NodeRecord[], unreadable: readonly string[]): LoadedNodes {
    const added: FleetNode[] = [];
    const changed: FleetNode[] = [];
    const seen = new Set(unreadable);
    credentials.clear();
    for (const record of records) {
      seen.add(record.id);
      let node = nodes.get(record.id);
      if (node === undefined) {
        node = newFleetNode(record, clock.now_ms(), moved);
        nodes.set(record.id, node);
        placeSpots(node);
        added.push(node);
      } else {
        node.record = record;
        if (sync(node)) changed.push(node);
      }
      noteCredentials(node);
    }
    for (const id of unreadable) {
      const node = nodes.get(id);
      if (node !== undefined) noteCredentials(node);
    }
    const removed = [...nodes.values()].filter((node) => !seen.has(node.id));
    for (const node of removed) {
      nodes.delete(node.id);
      clearSpots(node);
    }
    return { added, changed: [...added, ...changed], removed };
  }

  function noteCredentials(node: FleetNode): void {
    for (const { hash, expires_at } of node.record.credentials) credentials.set(hash, { node, expires_at });
  }

  function sync(node: FleetNode): boolean {
    const { record, liveness } = node;
    const draining = record.drain_deadline_at !== null || node.stopping;
    const stalled = isStalled(liveness, clock.now_ms(), timings);
    // What a node said last that is away now is not why it gets nothing.
    const journal_down = liveness.state === 'online' && node.journal.health === 'down';
    const elsewhere = node.replica !== null;
    const changed =
      node.elsewhere !== elsewhere ||
      node.state !== liveness.state ||
      node.stalled !== stalled ||
      node.journal_down !== journal_down ||
      node.cordoned !== record.cordoned ||
      node.draining !== draining ||
      !sameWishes(node.synced, record);
    node.state = liveness.state;
    node.stalled = stalled;
    node.journal_down = journal_down;
    node.elsewhere = elsewhere;
    node.cordoned = record.cordoned;
    node.draining = draining;
    node.labels = record.labels;
    node.allowed_models = record.allowed_models.length === 0 ? null : record.allowed_models;
    node.synced = record;
    if (changed) moved(node);
    return changed;
  }

  function placeSpots(node: FleetNode): void {
    clearSpots(node);
    if (node.descriptor === null) return;
    resizePools(node.ledger, node.descriptor.pools);
    for (const backend of node.descriptor.backends) {
      const slots = node.ledger.pools.get(backend.pool);
      if (slots === undefined) continue;
      for (const model of backend.models) {
        const spot: ModelSpot = {
          node,
          model: model.id,
          backend: backend.id,
          operations: model.operations,
          loaded: model.loaded ?? true,
          ...healthOf(node.health.get(backend.id), model.id),
          slots,
        };
        node.spots.push(spot);
        const spots = by_model.get(model.id) ?? newModelSpots<ModelSpot>();
        by_model.set(model.id, spots);
        spots.add(spot);
      }
    }
  }

  function clearSpots(node: FleetNode): void {
    for (const { model } of node.spots) {
      const spots = by_model.get(model);
      spots?.remove(node.id);
      if (spots?.size === 0) by_model.delete(model);
    }
    node.spots = [];
  }

  /** What the node's spots can do now may have changed. */
  function moved(node: FleetNode, pool?: PoolLedger): void {
    for (const spot of node.spots) {
      if (pool === undefined || spot.slots === pool) by_model.get(spot.model)!.moved(spot);
    }
  }
}

/** Twice what one message can tell of: whoever tells of ever new backends does not fill the memory. */
const HEALTH_MOST = 512;

/** Whether a newer record says the same about what this replica acts on. */
function sameWishes(a: NodeRecord, b: NodeRecord): boolean {
  return (
    a === b ||
    (a.drain_deadline_at === b.drain_deadline_at &&
      a.revoked_at === b.revoked_at &&
      JSON.stringify([a.labels, a.allowed_models]) === JSON.stringify([b.labels, b.allowed_models]))
  );
}

function setHealth(node: FleetNode, backends: readonly BackendHealth[]): boolean {
  if (node.health.size + backends.length > HEALTH_MOST) node.health.clear();
  for (const backend of backends) node.health.set(backend.id, backend);
  let changed = false;
  for (const spot of node.spots) {
    const { backend_health, model_health } = healthOf(node.health.get(spot.backend), spot.model);
    if (backend_health !== spot.backend_health || model_health !== spot.model_health) changed = true;
    spot.backend_health = backend_health;
    spot.model_health = model_health;
  }
  return changed;
}

/** A backend that was never reported is taken as down: nothing says that it works. */
function healthOf(
  backend: BackendHealth | undefined,
  model: string,
): { backend_health: Health; model_health: Health } {
  if (backend === undefined) return { backend_health: 'down', model_health: 'down' };
  const own = backend.models.find((entry) => entry.id === model);
  return { backend_health: backend.health, model_health: own?.health ?? backend.health };
}

/** Whether any of these places, whatever the state of its node, may serve its model to somebody. */
export function isServed(spots: Iterable<ModelSpot>): boolean {
  for (const { node, model } of spots) {
    const allowed = node.allowed_models === null || matchesModel(node.allowed_models, model);
    if (node.state !== 'revoked' && allowed) return true;
  }
  return false;
}
