import type {
  BackendHealth,
  BudgetPeriod,
  Descriptor,
  JobState,
  NodeState,
  Scope,
  TokenBudget,
} from '@flotilla/protocol';
import type { DetachedJobs } from './detached-jobs.ts';
import type { ModelDiscoveries } from './model-discoveries.ts';
import type { SharedLimits } from './shared-limits.ts';
import type { Upstreams } from './upstreams.ts';

/**
 * The store as the control plane sees it: one SQL dialect behind it, PostgreSQL or the embedded PGlite.
 *
 * - A promise that resolves means committed. A rejection means not known to be committed.
 * - Times are milliseconds since the epoch, stamped for people; no decision compares two machines' clocks.
 * - Counts of tokens, epochs, offsets and order keys are 64-bit in the store on every engine.
 * - Each write of administration raises the configuration version in the same transaction, which is how replicas
 *   learn that their snapshots are old.
 */
export interface Store extends DetachedJobs, ModelDiscoveries, Upstreams, SharedLimits {
  readonly engine: 'embedded' | 'postgres';
  /** What an acknowledged write survives (promise P9); printed at start. */
  readonly durability: 'process death' | 'power loss';
  ping(): Promise<void>;
  close(): Promise<void>;
  /** The whole store as it is at one moment, as the text of a backup, while everything else goes on. */
  dump(product_version: string, now: Date): AsyncGenerator<string>;

  // ── Configuration snapshots ──
  configVersion(): Promise<number>;
  /** What this store's replicas are called on a bus that other installations use as well. */
  installation(): Promise<string>;
  loadKeys(): Promise<KeyRecord[]>;
  /** Descriptors that the caller has, by node and hash, are neither sent nor parsed again. */
  loadNodes(known?: KnownDescriptor): Promise<LoadedNodes>;

  // ── Keys ──
  insertKey(key: KeyRecord): Promise<void>;
  /** @returns the key as it now is, or undefined if there is none. */
  updateKey(id: string, patch: KeyPatch): Promise<KeyRecord | undefined>;
  /** Idempotent: a second revocation keeps the first's time. */
  revokeKey(id: string, at: number): Promise<KeyRecord | undefined>;
  /** One statement for all. */
  touchKeys(used: { id: string; at: number }[]): Promise<void>;

  // ── Enrolment ──
  insertToken(token: TokenRecord): Promise<void>;
  listTokens(page: PageRequest, now: number): Promise<Page<TokenRecord>>;
  deleteToken(id: string): Promise<boolean>;
  /** Uses up one use of the token and makes the node with its credential, or does neither. */
  enrolNode(enrolment: Enrolment): Promise<EnrolmentResult>;

  // ── Nodes ──
  /** Raises the epoch of each node by one, in one statement, and returns the new ones; unknown ids are left out. */
  takeEpochs(replica: string, nodes: string[]): Promise<Map<string, number>>;
  updateNode(id: string, patch: NodePatch): Promise<NodeRecord | undefined>;
  /** Adds a credential; those before it end at `old_expires_at`. */
  rotateCredential(node: string, credential: CredentialRecord, old_expires_at: number): Promise<boolean>;
  revokeNode(id: string, at: number): Promise<NodeRecord | undefined>;
  deleteNode(id: string): Promise<boolean>;
  /** Descriptors that changed; each only where `epoch` is still the node's. One statement for all. */
  saveDescriptors(changes: DescriptorChange[]): Promise<void>;
  /** Liveness transitions; each only where `epoch` is still the node's. One statement for all. */
  saveNodeStates(changes: NodeStateChange[]): Promise<void>;
  /** `last_seen_at` of all nodes heard from, in one statement; it only moves forward. */
  flushSeen(seen: { id: string; at: number }[]): Promise<void>;

  /**
   * What happened to nodes, on any replica, since the fleet had this number.
   * @param known descriptors that the caller has are not sent again
   */
  movedNodes(since: number, known: KnownDescriptor): Promise<MovedNodes>;

  // ── Replicas ──
  /**
   * Makes the row of a replica that starts. Where no other has one, no limit is shared with anybody.
   * @param bus it can have others beside it
   */
  enterReplica(id: string, bus: boolean): Promise<void>;
  /** @returns false where the row is gone: another replica has taken this one for dead */
  bumpReplica(id: string): Promise<boolean>;
  /** What it held of shared limits is given back, as far as it cannot have been used. */
  endReplica(id: string): Promise<void>;
  /** Rows of all replicas, with the store's own count of bumps, so that a watcher can see one stand still. */
  listReplicas(): Promise<ReplicaRow[]>;
  /** Ids that sessions bear which are open at the store at this moment; null where it cannot tell. */
  openSessions(): Promise<ReadonlySet<string> | null>;

  // ── Attached jobs ──
  /**
   * Finished attached jobs: job, attempts and usage of all of them in one statement.
   * A job already settled stays as it is (the same settlement may be sent again after a lost answer).
   */
  settle(batch: Settlement[]): Promise<void>;
  /** Attached jobs still open after a second, without bodies; `settle` completes the same rows. */
  recordOpen(batch: JobRecord[]): Promise<void>;
  /** Ends open attached rows of a replica that is no more. @returns how many */
  endOrphans(replica: string, at: number): Promise<number>;

  listJobs(filter: JobFilter, page: PageRequest): Promise<Page<StoredJob>>;
  findJob(id: string): Promise<StoredJob | undefined>;

  // ── Usage ──
  listUsage(filter: UsageFilter, page: PageRequest): Promise<Page<UsageRecord>>;
  summarizeUsage(
    filter: UsageFilter,
    by: 'model' | 'key' | 'node' | 'provider' | 'day',
  ): Promise<UsageGroup[]>;
  /** What each key's settled requests have cost in the periods that began then; read at start, never by a request. */
  loadSpending(since: Record<BudgetPeriod, number>): Promise<KeySpending[]>;

  // ── Audit ──
  /**
   * Runs an act of administration. Its row is written in the transaction of the first change that `run` makes to the
   * configuration; where it makes none, before this resolves. One that is refused leaves a row if the act keeps those.
   */
  act<T>(act: Act, run: () => Promise<T>): Promise<T>;
  listAudit(filter: AuditFilter, page: PageRequest): Promise<Page<AuditRecord>>;

  // ── Upkeep ──
  /** Deletes what has outlived its time, a bounded number of rows a call. Any replica may call it at any time. */
  sweep(limits: RetentionLimits, now: number): Promise<SweepResult>;
}

export interface ReplicaRow {
  id: string;
  bumps: number;
  bus: boolean;
  /** Its sessions at the store bear its id: if `openSessions` does not have it, it has none. */
  named: boolean;
}

export interface KeyRecord {
  id: string;
  name: string;
  /** SHA-256 of the whole credential, hex; the credential itself is 256 random bits. */
  hash: string;
  role: 'admin' | null;
  scopes: Scope[];
  allowed_models: string[];
  node_labels: Record<string, string>;
  requests_per_minute: number | null;
  concurrency: number | null;
  tokens_per_minute: number | null;
  token_budget: TokenBudget | null;
  created_at: number;
  expires_at: number | null;
  last_used_at: number | null;
  revoked_at: number | null;
}
export type KeyPatch = Partial<
  Pick<
    KeyRecord,
    | 'name'
    | 'scopes'
    | 'allowed_models'
    | 'node_labels'
    | 'requests_per_minute'
    | 'concurrency'
    | 'tokens_per_minute'
    | 'token_budget'
    | 'expires_at'
  >
>;

export interface TokenRecord {
  id: string;
  hash: string;
  labels: Record<string, string>;
  allowed_models: string[];
  max_uses: number;
  uses: number;
  created_at: number;
  expires_at: number;
}

export interface CredentialRecord {
  id: string;
  hash: string;
  created_at: number;
  expires_at: number | null;
}

export interface Enrolment {
  token_hash: string;
  node: string;
  name: string;
  labels: Record<string, string>;
  credential: CredentialRecord;
  now: number;
}
export type EnrolmentResult =
  | { enrolled: NodeRecord }
  | { refused: 'token_unknown' | 'token_expired' | 'token_used' | 'name_taken' };

export interface LoadedNodes {
  nodes: NodeRecord[];
  /** Ids of rows whose rights cannot be read: they are there, whatever they say. */
  unreadable: string[];
}

/** The descriptor that the caller has of this node, if it is the one with this hash. */
export type KnownDescriptor = (node: string, hash: string) => Descriptor | undefined;

export interface NodeRecord {
  id: string;
  name: string;
  /** The token's labels and then the node's own at enrolment; the operator's edits replace them. */
  labels: Record<string, string>;
  allowed_models: string[];
  state: NodeState;
  cordoned: boolean;
  /** Wall-clock deadline of the drain asked for; null: none. */
  drain_deadline_at: number | null;
  epoch: number;
  descriptor: Descriptor | null;
  descriptor_hash: string | null;
  close_reason: string | null;
  created_at: number;
  last_seen_at: number | null;
  revoked_at: number | null;
  /** Only those that have not expired for more than a day. */
  credentials: CredentialRecord[];
}
export type NodePatch = Partial<
  Pick<NodeRecord, 'labels' | 'allowed_models' | 'cordoned' | 'drain_deadline_at'>
>;

export interface DescriptorChange {
  id: string;
  epoch: number;
  descriptor: Descriptor;
  descriptor_hash: string;
}
export interface NodeStateChange {
  id: string;
  epoch: number;
  state: NodeState;
  close_reason: string | null;
  at: number;
  /** When the node was last heard of; an earlier time than the one that is there, or none, leaves that. */
  last_seen_at?: number | null;
  /** As the node told it last, for other replicas; absent: as it was. */
  health?: BackendHealth[];
}

export interface MovedNodes {
  fleet: number;
  nodes: MovedNode[];
}

/** A node as the replica that it is linked to, or was, has written it. */
export interface MovedNode {
  id: string;
  epoch: number;
  state: NodeState;
  replica: string | null;
  close_reason: string | null;
  health: BackendHealth[] | null;
  descriptor_hash: string | null;
  /** Null: the caller has it, or there is none. */
  descriptor: Descriptor | null;
}

export interface JobRecord {
  id: string;
  kind: 'inference' | 'agent' | 'discovery';
  attached: boolean;
  state: JobState;
  /** The replica that owns an attached job. */
  replica: string;
  key: string | null;
  model: string;
  operation: string;
  request_id: string;
  order_key: number;
  error_code: string | null;
  error_message: string | null;
  created_at: number;
  finished_at: number | null;
}

export interface AttemptRecord {
  attempt: number;
  node: string | null;
  /** The id of the upstream API, where it was one that served. */
  provider: string | null;
  backend: string | null;
  epoch: number;
  /** `succeeded`, or why it ended: an error code or a scheduler's reason such as `withdrawn`. */
  outcome: string;
  code: string | null;
  message: string | null;
  offered_at: number;
  started_at: number | null;
  ended_at: number | null;
}

export interface UsageRecord {
  job: string;
  request_id: string;
  key: string | null;
  model: string;
  operation: string;
  node: string | null;
  provider: string | null;
  outcome: string;
  status: number;
  attempts: number;
  prompt_tokens: number;
  completion_tokens: number;
  cached_tokens: number;
  estimated: boolean;
  queue_ms: number;
  first_byte_ms: number | null;
  total_ms: number;
  created_at: number;
}

export interface Settlement {
  job: JobRecord;
  attempts: AttemptRecord[];
  usage: UsageRecord;
}

export interface StoredJob extends JobRecord {
  attempts: AttemptRecord[];
}

export interface AuditRecord {
  id: string;
  at: number;
  action: string;
  /** `succeeded`, or the code of the refusal. */
  outcome: string;
  /** The key that asked, and its name then; null: nobody with a key. */
  key: string | null;
  key_name: string | null;
  address: string | null;
  /** What was acted on; null where that is known only afterwards: it is then the `id` of what was changed. */
  target: string | null;
  /** Without secrets. */
  change: Record<string, unknown>;
  request_id: string;
}
export interface Act {
  record: AuditRecord;
  keep_refusals: boolean;
}
export interface AuditFilter {
  key?: string;
  action?: string;
  target?: string;
  since?: number;
  until?: number;
}

/** Newest first; `after` is the id of the last row of the page before. */
export interface PageRequest {
  limit: number;
  after?: string;
}
export interface Page<T> {
  rows: T[];
  next_after: string | null;
}
export interface JobFilter {
  key?: string;
  state?: JobState;
  model?: string;
}
export interface UsageFilter {
  key?: string;
  model?: string;
  node?: string;
  provider?: string;
  since?: number;
  until?: number;
}
export interface UsageGroup {
  group: string;
  requests: number;
  failed: number;
  prompt_tokens: number;
  completion_tokens: number;
  estimated: number;
}
/** Tokens of prompts and answers, by period. */
export interface KeySpending extends Record<BudgetPeriod, number> {
  key: string;
}
export interface RetentionLimits {
  /** Finished jobs and their attempts are kept this long. */
  jobs_ms: number;
  usage_ms: number;
  audit_ms: number;
  /** Most rows deleted of each kind in one call. */
  batch: number;
}
export interface SweepResult {
  jobs: number;
  usage: number;
  tokens: number;
  credentials: number;
  audit: number;
  discoveries: number;
}
