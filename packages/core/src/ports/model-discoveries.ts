import type {
  BackendTold,
  DiscoveryReason,
  DiscoveryStage,
  DiscoveryState,
  Model,
  NodeState,
} from '@flotilla/protocol';

/**
 * Requests to nodes for their models, and the last list that each backend told. One is in flight for each node and
 * backend; its deadline is stamped and judged by the store's clock.
 */
export interface ModelDiscoveries {
  /** Makes the request, or gives the one that is in flight, or (of a refusal) the one just refused for that reason. */
  openDiscovery(request: NewDiscovery): Promise<DiscoveryRecord>;
  /** How far requests are; none goes back, and one that has ended stays as it is. One statement for all. */
  noteDiscoveries(notes: DiscoveryNote[]): Promise<void>;
  /** Ends a request that is open, and keeps the lists it brought; decides between a result and the deadline. */
  finishDiscovery(end: DiscoveryEnd): Promise<'accepted' | 'duplicate' | 'stale'>;
  /** Ends those whose time is over. @returns the open ones, oldest first */
  openDiscoveries(limit: number): Promise<DiscoveryRecord[]>;
  findDiscovery(id: string): Promise<DiscoveryRecord | undefined>;
  /** The last good list of each backend of a node. */
  loadCatalogues(node: string): Promise<CatalogueRecord[]>;
}

export interface NewDiscovery {
  id: string;
  node: string;
  /** Null: all of the node. */
  backend: string | null;
  timeout_ms: number;
  /** Refused before it began: the request is its own record of that. */
  refused: DiscoveryReason | null;
}

export interface DiscoveryRecord {
  id: string;
  node: string;
  backend: string | null;
  state: DiscoveryState;
  stage: DiscoveryStage;
  /** The backend that is, or was last, waited for. */
  waiting_for: string | null;
  reason: DiscoveryReason | null;
  results: BackendTold[];
  created_at: number;
  expires_at: number;
  finished_at: number | null;
  /** By the store's clock, when it was read; not positive: its time is over. */
  left_ms: number;
}

export interface DiscoveryNote {
  id: string;
  node: string;
  stage: DiscoveryStage;
  waiting_for: string | null;
}

export interface DiscoveryEnd {
  id: string;
  node: string;
  state: Extract<DiscoveryState, 'completed' | 'failed' | 'timed_out'>;
  reason: DiscoveryReason | null;
  /** Null: as far as it was. */
  stage: DiscoveryStage | null;
  waiting_for: string | null;
  results: BackendTold[];
}

export interface CatalogueRecord {
  backend: string;
  kind: string;
  version: string | null;
  models: Model[];
  models_total: number;
  discovered_at: number;
  /** By the store's clock. */
  age_ms: number;
}

/** What of a node decides whether it can be asked. */
export interface AskableNode {
  state: NodeState;
  connected: boolean;
  features: readonly string[];
}
