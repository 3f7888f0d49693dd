import type { WholeStream } from '@flotilla/core';
import type {
  BackendHealth,
  ControlMessageOf,
  Descriptor,
  DiscoveryRequest,
  JournalHealth,
  NodeMessageOf,
  Operation,
} from '@flotilla/protocol';

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
  /** Detached work of an earlier process, or thread. */
  journal: JournalEntry[];
  journal_health: JournalHealth;
}

/** What this node has of a detached attempt; on disk until the control plane needs it no more. */
export interface JournalEntry {
  offer: ControlMessageOf<'job.offer'>;
  /** Null: begun, and not ended as far as is known. */
  ended: EndedWork | null;
}

export interface EndedWork {
  result: NodeMessageOf<'job.completed'> | NodeMessageOf<'job.failed'>;
  /** What goes before the result; null: nothing. */
  answer: WholeStream | null;
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
  /** The node's credential was rotated: links are opened with this one from now on, and the open one is made anew. */
  | { type: 'credential'; credential: string }
  /** Goes over the link as it is; where there is none the control plane asks again. */
  | { type: 'discovery'; message: NodeMessageOf<'discovery.progress'> | NodeMessageOf<'discovery.result'> }
  /** Whether what it is given gets onto the disk. */
  | { type: 'journal_health'; health: JournalHealth }
  /** `stopping` is on disk: take no more, finish within `deadline_ms`, deregister, then say `stopped`. */
  | { type: 'drain'; deadline_ms: number; reason: string };

export type FromLink =
  /** `url`: of the addresses that this node knows, the one that it is linked to. */
  | { type: 'connected'; url: string; epoch: number; node_id: string; name: string; heartbeat_ms: number }
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
  /** The control plane asks for models; the same request comes as often as it may have been lost. */
  | { type: 'discovery_asked'; request: DiscoveryRequest }
  | { type: 'discovery_acknowledged'; request: string }
  /** To be on disk until it is dropped. */
  | { type: 'journal_keep'; entry: JournalEntry }
  | { type: 'journal_drop'; job: string; attempt: number }
  | { type: 'fenced'; attempts: number }
  /** This node may not go on; answered by `drain` with no time left, before which nothing is let go. */
  | { type: 'stopping'; why: FinalRefusal; message: string }
  /**
   * The thread has ended for good, has cut so many attempts, and leaves so many results to the journal; the process
   * exits 0 after a drain, else 3.
   */
  | {
      type: 'stopped';
      why: 'drained' | FinalRefusal;
      message: string;
      released: number;
      kept: number;
    };

/** Why a control plane wants no link of this daemon any more. */
export type FinalRefusal = 'revoked' | 'superseded' | 'protocol';

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
