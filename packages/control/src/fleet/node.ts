import {
  ChurnMap,
  RECONNECT_CEILINGS_MS,
  type Ledger,
  type Liveness,
  type NodeRecord,
  type PlacementNode,
  type PoolLedger,
  type Spot,
  type Timer,
  LeasesDigest,
  newLedger,
  newLiveness,
  slotKey,
} from '@flotilla/core';
import type { BackendHealth, Descriptor, Health, JournalHealth, Operation } from '@flotilla/protocol';
import type { Attempt } from '../dispatch/attempt.ts';
import type { Link } from './link.ts';

/**
 * Where the store is slower than a node, results pile up on it, which keeps them until they are committed. With so many,
 * nothing more is claimed for it: it would have to reject it soon, for its inventory would be full.
 */
export const UNSETTLED_MOST = 256;

/** A node as this replica knows it: what the store says, what its link says, what it has been given. */
export interface FleetNode extends PlacementNode {
  /** It is no machine: an upstream API that this replica calls itself. Not in the roster, and in no row of nodes. */
  readonly is_provider: boolean;
  record: NodeRecord;
  /** The record that the placement view was made from. */
  synced: NodeRecord;
  liveness: Liveness;
  // The placement view, kept in step with the above by the roster.
  state: PlacementNode['state'];
  stalled: boolean;
  journal_down: boolean;
  /** Ends of its detached work that the store has not taken yet. */
  unsettled: number;
  resting: boolean;
  cordoned: boolean;
  draining: boolean;
  labels: Record<string, string>;
  allowed_models: string[] | null;
  failures: number;
  failures_at_ms: number;

  link: Link | null;
  /** The replica that has its link, where that is not this one. */
  replica: string | null;
  elsewhere: boolean;
  boot_id: string | null;
  /** What it can be asked beyond the protocol, as it said when it registered last. */
  features: readonly string[];
  unfenced: boolean;
  /** Until then a former process of this node may hold a lease, by `now_ms`. */
  former_until_ms: number;
  /** Processes whose place another one has taken, latest last: they are to stop for good when they come back. */
  superseded: string[];
  epoch: number;
  descriptor: Descriptor | null;
  descriptor_hash: string;
  health: Map<string, BackendHealth>;
  journal: JournalHealth;
  ledger: Ledger;
  spots: ModelSpot[];
  /** Attempts the node may hold: current ones, and withdrawn ones until it has let go of them. By `job:attempt`. */
  attempts: ChurnMap<string, Attempt>;
  /** Of `attempts`, compared with the node's own on every beat. */
  digest: LeasesDigest;
  /** Beats in a row whose digest or counts differed from ours. */
  differing_beats: number;
  /** Waits after a lost link: unsent requests move, streams end. */
  away: Timer[];
  /** Ends a drain at its deadline. */
  drain_timer: Timer | null;
  /** The hash of the credential that the link was opened with … */
  credential: string | null;
  /** … and the end of the link when that credential ends. */
  credential_timer: Timer | null;
  warnings: string[];
  alarm: { text: string; at_ms: number } | null;
  host: Record<string, unknown>;
  connected_at: number | null;
  last_seen_at: number | null;
  /** The daemon itself is stopping: it takes no more. */
  stopping: boolean;
}

/** A node that does not say how its journal is, being older than that. */
export const ABLE: JournalHealth = { health: 'healthy' };

/** A model on a backend of a node; one object for its lifetime, so that placement builds nothing. */
export interface ModelSpot extends Spot {
  node: FleetNode;
  model: string;
  backend: string;
  operations: readonly Operation[];
  loaded: boolean;
  backend_health: Health;
  model_health: Health;
  slots: PoolLedger;
}

/**
 * A node that had a link when the store last heard of it comes back within moments of this replica's start. Until its
 * slowest redial and a lease are over it is missed, not gone, so that its models exist and requests wait for it.
 */
function firstLiveness({ state, descriptor }: NodeRecord, now_ms: number): Liveness {
  if (state === 'revoked') return newLiveness('revoked', 'credential withdrawn');
  if (state === 'online' || state === 'suspect') {
    const awaited = newLiveness('suspect', 'not heard of since this control plane started');
    return { ...awaited, last_beat_ms: now_ms + RECONNECT_CEILINGS_MS.at(-1)! };
  }
  if (descriptor === null) return newLiveness('pending', 'enrolled, never connected');
  return newLiveness('offline', 'not connected to this replica');
}

/** @param turned a pool of the node has become full, or free again */
export function newFleetNode(
  record: NodeRecord,
  now_ms: number,
  turned: (node: FleetNode, pool: PoolLedger) => void,
  is_provider = false,
): FleetNode {
  const node: FleetNode = {
    id: record.id,
    is_provider,
    record,
    synced: record,
    liveness: firstLiveness(record, now_ms),
    state: 'pending',
    stalled: false,
    journal_down: false,
    unsettled: 0,
    resting: false,
    cordoned: record.cordoned,
    draining: record.drain_deadline_at !== null,
    labels: record.labels,
    allowed_models: record.allowed_models.length === 0 ? null : record.allowed_models,
    failures: 0,
    failures_at_ms: 0,
    link: null,
    replica: null,
    elsewhere: false,
    boot_id: null,
    features: [],
    unfenced: false,
    former_until_ms: 0,
    superseded: [],
    epoch: record.epoch,
    descriptor: record.descriptor,
    descriptor_hash: record.descriptor_hash ?? '',
    health: new Map(),
    journal: ABLE,
    ledger: newLedger((pool) => turned(node, pool)),
    spots: [],
    attempts: new ChurnMap(),
    digest: new LeasesDigest(),
    differing_beats: 0,
    away: [],
    drain_timer: null,
    credential: null,
    credential_timer: null,
    warnings: [],
    alarm: null,
    host: {},
    connected_at: null,
    last_seen_at: record.last_seen_at,
    stopping: false,
  };
  node.state = node.liveness.state;
  return node;
}

/** Of what a node has failed, this much later half is forgotten. */
const FAILURE_HALF_LIFE_MS = 60_000;

/** Brings its failures up to date: a node that placement avoids for them would never be tried again otherwise. */
export function forgetFailures(node: Pick<FleetNode, 'failures' | 'failures_at_ms'>, now_ms: number): void {
  if (node.failures > 0) node.failures *= 2 ** ((node.failures_at_ms - now_ms) / FAILURE_HALF_LIFE_MS);
  node.failures_at_ms = now_ms;
}

/** Notes an attempt that the node may hold from now on. */
export function holdAttempt(node: FleetNode, attempt: Attempt): void {
  node.attempts.set(slotKey(attempt.job.id, attempt.number), attempt);
  node.digest.add(attempt.job.id, attempt.number);
}

/** The node holds it no longer. @returns false if it was not noted */
export function dropAttempt(node: FleetNode, attempt: Attempt): boolean {
  const key = slotKey(attempt.job.id, attempt.number);
  if (node.attempts.get(key) !== attempt) return false;
  node.attempts.delete(key);
  node.digest.remove(attempt.job.id, attempt.number);
  return true;
}
