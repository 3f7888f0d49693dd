import type { NodeState } from '@flotilla/protocol';

/**
 * Whether a node lives, as its control plane knows it.
 *
 *     pending ──reconciled──▶ online ◀──beat── suspect ──lease ended──▶ offline
 *        ▲                      └──closed, 2.5 H silent──▲                 │
 *        └────────────────────── registered ────────────────────────────── ┘
 *     any ──revoked──▶ revoked (for good)          any ──deregistered──▶ offline
 *     any ──elsewhere──▶ as the replica says that has its link; ──orphaned──▶ suspect, when that replica is no more
 *
 * Moved by: the node's link (registered, beat, closed, deregistered), the replica's monotonic clock (tick), the
 * operator (revoked). What the operator wishes (cordon, drain) and how healthy the backends are is kept elsewhere:
 * a cordoned node is no less alive. On a crash of the replica nothing here survives: nodes register anew.
 */
export interface Timings {
  /** H: everything below follows from it. */
  heartbeat_ms: number;
  /** A beat comes H plus at most this after the one before. */
  jitter_ms: number;
  /** Without an acknowledgement for this long the node closes its socket. */
  socket_dead_ms: number;
  /** Silent for this long, a node is suspect. */
  suspect_ms: number;
  /** What the node's own fence keeps away from the lease's end. */
  margin_ms: number;
  /** After its last acknowledged beat was SENT the node may work this long. */
  fence_ms: number;
  /** After a beat was RECEIVED the lease lasts this long. */
  lease_ttl_ms: number;
}

/** All times of liveness from the one interval H. A property test holds their order for every H. */
export function timings(heartbeat_ms: number): Timings {
  const margin_ms = Math.max(0.2 * heartbeat_ms, Math.min(1000, 0.4 * heartbeat_ms));
  return {
    heartbeat_ms,
    jitter_ms: 0.1 * heartbeat_ms,
    socket_dead_ms: 2 * heartbeat_ms,
    suspect_ms: 2.5 * heartbeat_ms,
    margin_ms,
    fence_ms: 3 * heartbeat_ms - margin_ms,
    lease_ttl_ms: 3 * heartbeat_ms,
  };
}

/** A closed link's attached work: what has sent nothing may move, streams wait a little longer for the same node. */
export const ATTACHED_MOVE_MS = 2000;
export const STREAM_WAIT_MS = 5000;
/** The node's side of the same: later than every wait of the control plane. */
export const ATTACHED_DROP_MS = 6000;

export interface Liveness {
  readonly state: NodeState;
  readonly connected: boolean;
  /** Monotonic receipt time of the last beat or registration; null: never on this replica. */
  readonly last_beat_ms: number | null;
  /** Why it is in this state. */
  readonly reason: string;
  readonly progress_seq: number;
  readonly progress_moved_ms: number;
}

export type LivenessEvent =
  | { type: 'registered' }
  | { type: 'reconciled' }
  | { type: 'beat'; progress_seq: number }
  | { type: 'closed'; reason: string }
  | { type: 'deregistered'; reason: string }
  | { type: 'revoked' }
  | { type: 'tick' }
  /** Another replica has its link, and says this of it. */
  | { type: 'elsewhere'; state: NodeState; reason: string }
  /** The replica that had its link is no more. */
  | { type: 'orphaned'; reason: string };

export function newLiveness(state: NodeState, reason: string): Liveness {
  return { state, connected: false, last_beat_ms: null, reason, progress_seq: -1, progress_moved_ms: 0 };
}

/** The next state; the same object when nothing changed. */
export function stepLiveness(node: Liveness, event: LivenessEvent, now_ms: number, t: Timings): Liveness {
  if (node.state === 'revoked') return node;
  switch (event.type) {
    case 'registered':
      return {
        ...node,
        state: 'pending',
        connected: true,
        last_beat_ms: now_ms,
        reason: 'connected, being reconciled',
        progress_moved_ms: now_ms,
      };
    case 'reconciled':
      return node.connected ? { ...node, state: 'online', reason: 'beats acknowledged' } : node;
    case 'beat': {
      if (!node.connected) return node;
      const moved = event.progress_seq !== node.progress_seq;
      return {
        ...node,
        state: node.state === 'pending' ? 'pending' : 'online',
        reason: node.state === 'pending' ? node.reason : 'beats acknowledged',
        last_beat_ms: now_ms,
        progress_seq: event.progress_seq,
        progress_moved_ms: moved ? now_ms : node.progress_moved_ms,
      };
    }
    case 'closed':
      if (!node.connected) return node;
      return leaseEnded(node, now_ms, t)
        ? { ...node, connected: false, state: 'offline', reason: event.reason }
        : { ...node, connected: false, state: 'suspect', reason: event.reason };
    case 'deregistered':
      return { ...node, connected: false, state: 'offline', reason: event.reason };
    case 'revoked':
      return { ...node, connected: false, state: 'revoked', reason: 'credential withdrawn' };
    case 'elsewhere':
      return {
        ...node,
        connected: false,
        last_beat_ms: null,
        state: event.state,
        reason: event.reason,
        progress_moved_ms: now_ms,
      };
    // It dials again within moments: missed, not gone, for as long as a lease.
    case 'orphaned':
      return { ...node, connected: false, last_beat_ms: now_ms, state: 'suspect', reason: event.reason };
    case 'tick':
      return tick(node, now_ms, t);
  }
}

function tick(node: Liveness, now_ms: number, t: Timings): Liveness {
  if (node.state === 'offline' || node.last_beat_ms === null) return node;
  if (leaseEnded(node, now_ms, t)) {
    const reason = node.connected ? `silent for ${Math.round(t.lease_ttl_ms)} ms` : node.reason;
    return { ...node, connected: false, state: 'offline', reason };
  }
  if (node.state === 'online' && now_ms - node.last_beat_ms >= t.suspect_ms) {
    return { ...node, state: 'suspect', reason: `silent for ${Math.round(t.suspect_ms)} ms` };
  }
  return node;
}

function leaseEnded(node: Liveness, now_ms: number, t: Timings): boolean {
  return node.last_beat_ms === null || now_ms - node.last_beat_ms >= t.lease_ttl_ms;
}

/** When a tick would next change something; null: never without another event. */
export function nextLivenessDeadline(node: Liveness, t: Timings): number | null {
  if (node.last_beat_ms === null || node.state === 'offline' || node.state === 'revoked') return null;
  return node.last_beat_ms + (node.state === 'online' ? t.suspect_ms : t.lease_ttl_ms);
}

/** Beats go on but the daemon's main thread stands still: alive, yet not to be given work. */
export function isStalled(node: Liveness, now_ms: number, t: Timings): boolean {
  return node.connected && node.state === 'online' && now_ms - node.progress_moved_ms > 2 * t.heartbeat_ms;
}
