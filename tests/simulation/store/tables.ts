import type {
  Allowance,
  AttemptRecord,
  CredentialRecord,
  DetachedJob,
  DiscoveryRecord,
  CatalogueRecord,
  JobRecord,
  KeyRecord,
  NodeRecord,
  NodeStateChange,
  ReplicaRow,
  TokenRecord,
  UsageRecord,
} from '@flotilla/core';
import { isTerminal, type JobState } from '@flotilla/protocol';

/** What is committed. A row is replaced and never changed, so whoever has one has it as it was. */
export interface Tables {
  /** The store's own clock, whole milliseconds. */
  now_ms(): number;
  /** Of the configuration: raised by each write of administration. */
  version: number;
  /** Raised by whatever happens to nodes. */
  fleet: number;
  readonly keys: Map<string, Readonly<KeyRecord>>;
  readonly tokens: Map<string, Readonly<TokenRecord>>;
  readonly nodes: Map<string, NodeRow>;
  readonly credentials: Map<string, CredentialRow>;
  readonly replicas: Map<string, Readonly<ReplicaRow>>;
  /** What replicas share of keys' limits, by kind and key. */
  readonly allowances: Map<string, Allowance>;
  readonly jobs: JobTable;
  /** By job and attempt. */
  readonly attempts: Map<string, Map<number, Readonly<AttemptRecord>>>;
  readonly bodies: Map<string, BodyRow>;
  readonly usage: Map<string, UsageRow>;
  /** Tokens of usage rows that are gone, by key and then by the beginning of their day. */
  readonly swept_usage: Map<string, Map<number, number>>;
  readonly discoveries: Map<string, DiscoveryRow>;
  /** By node and backend. */
  readonly catalogues: Map<string, Map<string, CatalogueRow>>;
  canary: string | null;
}

/** A row of `jobs`; what only detached jobs have is null for the others. */
export interface JobRow extends Readonly<JobRecord> {
  readonly orphaned: boolean;
  readonly lane: string | null;
  readonly priority: number | null;
  readonly metadata: Record<string, unknown> | null;
  readonly idempotency_key: string | null;
  readonly body_hash: string | null;
  readonly on_node_loss: DetachedJob['on_node_loss'] | null;
  readonly max_attempts: number | null;
  readonly queue_timeout_ms: number | null;
  readonly run_timeout_ms: number | null;
  readonly attempt: number;
  readonly failures: number;
  /** Of the attempt that has it, or had it at its end. */
  readonly node: string | null;
  readonly epoch: number | null;
  readonly offered_at: number | null;
  readonly started_at: number | null;
  readonly not_before: number | null;
  readonly deadline_at: number | null;
  readonly accepted_attempt: number | null;
  readonly result_digest: string | null;
  readonly traceparent: string | null;
  readonly reserved_tokens: number | null;
  readonly accepted_by: string | null;
}

export interface NodeRow extends Readonly<Omit<NodeRecord, 'credentials'>> {
  readonly replica: string | null;
  readonly changed_at: number | null;
  readonly health: NodeStateChange['health'] | null;
  /** The fleet's number at its last change. */
  readonly moved: number;
}
interface CredentialRow extends Readonly<CredentialRecord> {
  readonly node: string;
}
interface BodyRow {
  readonly request: string | null;
  readonly result: string | null;
  readonly retention_ms: number;
  readonly erase_at: number | null;
}
export interface UsageRow extends Readonly<UsageRecord> {
  readonly provisional: boolean;
}
/** `backend` '': all of the node. */
export type DiscoveryRow = Readonly<Omit<DiscoveryRecord, 'left_ms' | 'backend'> & { backend: string }>;
type CatalogueRow = Readonly<Omit<CatalogueRecord, 'age_ms'>>;

/** One committed change of a job's state or fence. `from` null: the row was made. */
export interface Transition {
  readonly at_ms: number;
  readonly job: string;
  readonly attached: boolean;
  readonly from: JobState | null;
  readonly to: JobState;
  readonly attempt: number;
  readonly node: string | null;
  readonly epoch: number | null;
}

/** @param clock_ms fractions of a millisecond are rounded, as the real store's are */
export function createTables(clock_ms: () => number): Tables {
  const now_ms = () => Math.round(clock_ms());
  return {
    now_ms,
    version: 1,
    fleet: 0,
    keys: new Map(),
    tokens: new Map(),
    nodes: new Map(),
    credentials: new Map(),
    replicas: new Map(),
    allowances: new Map(),
    jobs: new JobTable(now_ms),
    attempts: new Map(),
    bodies: new Map(),
    usage: new Map(),
    swept_usage: new Map(),
    discoveries: new Map(),
    catalogues: new Map(),
    canary: null,
  };
}

/**
 * The jobs, with what the real store has indexes for: those that are open, those ready by lane in the order in which they
 * are claimed, and idempotency keys. Each write goes through `put`, which keeps the indexes and tells of the transition.
 */
class JobTable {
  readonly transitions: Transition[] = [];
  readonly #now_ms: () => number;
  readonly #rows = new Map<string, JobRow>();
  readonly #open = new Map<string, JobRow>();
  readonly #ready = new Map<string, JobRow[]>();
  readonly #idempotent = new Map<string, string>();

  constructor(now_ms: () => number) {
    this.#now_ms = now_ms;
  }

  get(id: string): JobRow | undefined {
    return this.#rows.get(id);
  }

  /** Undefined where it is attached: nothing that is asked about detached jobs touches it. */
  detached(id: string): JobRow | undefined {
    const row = this.#rows.get(id);
    return row?.attached === false ? row : undefined;
  }

  all(): IterableIterator<JobRow> {
    return this.#rows.values();
  }

  open(): IterableIterator<JobRow> {
    return this.#open.values();
  }

  openWhere(wanted: (row: JobRow) => boolean): JobRow[] {
    const rows: JobRow[] = [];
    for (const row of this.#open.values()) if (wanted(row)) rows.push(row);
    return rows;
  }

  /** The smallest order key first. */
  ready(lane: string): readonly JobRow[] {
    return this.#ready.get(lane) ?? [];
  }

  /** Those with a ready job. */
  lanes(): IterableIterator<string> {
    return this.#ready.keys();
  }

  idempotent(idempotency_key: string, key: string | null): JobRow | undefined {
    const id = this.#idempotent.get(placeOf(idempotency_key, key));
    return id === undefined ? undefined : this.#rows.get(id);
  }

  put(row: JobRow): void {
    const before = this.#rows.get(row.id);
    if (before === undefined && row.idempotency_key !== null) {
      this.#idempotent.set(placeOf(row.idempotency_key, row.key), row.id);
    }
    if (before !== undefined && isReady(before)) this.#leaveLane(before);
    this.#rows.set(row.id, row);
    if (isTerminal(row.state)) this.#open.delete(row.id);
    else this.#open.set(row.id, row);
    if (isReady(row)) this.#enterLane(row);
    this.#tell(before, row);
  }

  delete(row: JobRow): void {
    this.#rows.delete(row.id);
    this.#open.delete(row.id);
    if (isReady(row)) this.#leaveLane(row);
    if (row.idempotency_key !== null) this.#idempotent.delete(placeOf(row.idempotency_key, row.key));
  }

  #enterLane(row: JobRow): void {
    const lane = this.#ready.get(row.lane!);
    if (lane === undefined) this.#ready.set(row.lane!, [row]);
    else lane.splice(placeIn(lane, row), 0, row);
  }

  #leaveLane(row: JobRow): void {
    const lane = this.#ready.get(row.lane!)!;
    lane.splice(placeIn(lane, row), 1);
    if (lane.length === 0) this.#ready.delete(row.lane!);
  }

  #tell(before: JobRow | undefined, row: JobRow): void {
    const { state, attempt, node, epoch } = row;
    if (before?.state === state && before.attempt === attempt && before.epoch === epoch) return;
    this.transitions.push({
      at_ms: this.#now_ms(),
      job: row.id,
      attached: row.attached,
      from: before?.state ?? null,
      to: state,
      attempt,
      node,
      epoch,
    });
  }
}

function isReady(row: JobRow): boolean {
  return row.state === 'queued' && !row.attached && row.not_before === null;
}

/** Keys of nobody are one key, as in `nulls not distinct`. */
function placeOf(idempotency_key: string, key: string | null): string {
  return JSON.stringify([idempotency_key, key]);
}

/** Where it stands in its lane, or would: the first that is not before it. */
function placeIn(lane: readonly JobRow[], row: JobRow): number {
  let [low, high] = [0, lane.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (inTurn(lane[middle]!, row) < 0) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The order of claims. */
export function inTurn(a: JobRow, b: JobRow): number {
  return a.order_key - b.order_key || bytewise(a.id, b.id);
}

/** As `collate "C"` does, for ids. */
export function bytewise(a: string, b: string): number {
  if (a === b) return 0;
  return a < b ? -1 : 1;
}
