import type { BackendHealth, Descriptor, Operation } from '@flotilla/protocol';

/**
 * What the daemon's two threads say to each other.
 *
 * The link thread owns the socket, the beat, the lease guard and the inference relay: pure I/O, nothing that can block.
 * The main thread probes, writes files and talks to the operator. If the main thread hangs, beats go on and say so
 * (`progress`, a shared counter the main thread raises four times a second).
 */
export interface LinkThreadData {
  control_url: string;
  credential: string;
  boot_id: string;
  version: string;
  descriptor: Descriptor;
  descriptor_hash: string;
  backends: BackendTarget[];
  health: BackendHealth[];
  /** One Int32: raised by the main thread, read at each beat. */
  progress: SharedArrayBuffer;
  connect_timeout_ms: number;
}

/** Where a backend is and how it is asked; never leaves this machine. */
export interface BackendTarget {
  id: string;
  /** With its path prefix, without a trailing slash: `http://127.0.0.1:11434/v1`. */
  base_url: string;
  pool: string;
  headers: Record<string, string>;
  idle_timeout_ms?: number;
}

export type ToLink =
  /** The descriptor, the backends or both changed; sent whole. */
  | {
      type: 'descriptor';
      descriptor: Descriptor;
      descriptor_hash: string;
      backends: BackendTarget[];
      health: BackendHealth[];
    }
  | { type: 'health'; health: BackendHealth[] }
  /** Take no more, finish within `deadline_ms`, deregister, then say `stopped`. */
  | { type: 'drain'; deadline_ms: number; reason: string };

export type FromLink =
  | { type: 'connected'; epoch: number; node_id: string; name: string; heartbeat_ms: number }
  | { type: 'disconnected'; reason: string; retry_in_ms: number }
  /** A beat was acknowledged. Times are wall-clock milliseconds, for files and people. */
  | {
      type: 'acked';
      at: number;
      rtt_ms: number;
      cordoned: boolean;
      drain_ms: number | null;
      warnings: string[];
    }
  /** A moment after something began or ended, with all that ended since the last one: never a message a request. */
  | {
      type: 'load';
      pools: { id: string; in_flight: number; capacity: number }[];
      attempts: AttemptLoad[];
      ended: EndedAttempt[];
    }
  /** A request to a backend failed in a way that says something of its health: probe it now. */
  | { type: 'backend_failed'; backend: string; model: string; reason: string }
  /** At most once a second for each backend and model: served, so no probe is needed. */
  | { type: 'backend_served'; backend: string; model: string; operation: Operation }
  | { type: 'fenced'; attempts: number }
  /** The thread has ended for good; the process exits 0 after a drain, else 1. */
  | { type: 'stopped'; why: 'drained' | 'revoked' | 'superseded' | 'protocol'; message: string };

export interface EndedAttempt {
  outcome: string;
  operation: Operation;
  first_byte_ms: number | null;
  total_ms: number;
}

export interface AttemptLoad {
  job: string;
  attempt: number;
  backend: string;
  model: string;
  state: string;
  age_ms: number;
}
