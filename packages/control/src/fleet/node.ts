import {
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
import type { BackendHealth, Descriptor, Health, Operation } from '@flotilla/protocol';
import type { Attempt } from '../dispatch/attempt.ts';
import type { Link } from './link.ts';

/** A node as this replica knows it: what the store says, what its link says, what it has been given. */
export interface FleetNode extends PlacementNode {
  record: NodeRecord;
  /** The record that the placement view was made from. */
  synced: NodeRecord;
  liveness: Liveness;
  // The placement view, kept in step with the above by the roster.
  state: PlacementNode['state'];
  stalled: boolean;
  cordoned: boolean;
  draining: boolean;
  labels: Record<string, string>;
  allowed_models: string[] | null;
  failures: number;
  failures_at_ms: number;

  link: Link | null;
  boot_id: string | null;
  epoch: number;
  descriptor: Descriptor | null;
  descriptor_hash: string;
  health: Map<string, BackendHealth>;
  ledger: Ledger;
  spots: ModelSpot[];
  /** Attempts the node may hold: current ones, and withdrawn ones until it has let go of them. By `job:attempt`. */
  attempts: Map<string, Attempt>;
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

export function newFleetNode(record: NodeRecord): FleetNode {
  const node: FleetNode = {
    id: record.id,
    record,
    synced: record,
    liveness: newLiveness(
      record.state === 'revoked' ? 'revoked' : record.descriptor === null ? 'pending' : 'offline',
      record.descriptor === null ? 'enrolled, never connected' : 'not connected to this replica',
    ),
    state: 'pending',
    stalled: false,
    cordoned: record.cordoned,
    draining: record.drain_deadline_at !== null,
    labels: record.labels,
    allowed_models: record.allowed_models.length === 0 ? null : record.allowed_models,
    failures: 0,
    failures_at_ms: 0,
    link: null,
    boot_id: null,
    epoch: record.epoch,
    descriptor: record.descriptor,
    descriptor_hash: record.descriptor_hash ?? '',
    health: new Map(),
    ledger: newLedger(),
    spots: [],
    attempts: new Map(),
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
