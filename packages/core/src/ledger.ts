/**
 * The one ledger of slots of a node, on the replica that holds its link. Reserving happens with the offer; a slot is
 * free again on the attempt's result, its release, or the lease's end, never at the sending of a cancel: the backend
 * is still busy then. After a reconnect it restarts from the node's own inventory.
 */
export interface PoolLedger {
  readonly id: string;
  capacity: number;
  capacity_from: string;
  /** What the node's own last beat counted; null: it has not said. */
  reported: number | null;
  readonly held: Set<string>;
  /** Slots kept for jobs that the store is being asked for. */
  promised: number;
  /** Held and promised. A field, kept by `counted`: placement reads it of many pools for each request. */
  reserved: number;
  /** Whether it was full when `turned` was last called. */
  full: boolean;
}

export interface Ledger {
  readonly pools: Map<string, PoolLedger>;
  /** Which pool an attempt's slot is in. */
  readonly holders: Map<string, PoolLedger>;
  /** A pool has become full, or has a free slot again. */
  readonly turned: (pool: PoolLedger) => void;
}

export function newLedger(turned: Ledger['turned'] = () => undefined): Ledger {
  return { pools: new Map(), holders: new Map(), turned };
}

export function slotKey(job: string, attempt: number): string {
  return `${job}:${attempt}`;
}

/** Sets the sizes; a pool that is gone keeps its held slots until they are released. */
export function resizePools(
  ledger: Ledger,
  pools: readonly { id: string; capacity: number; capacity_from: string }[],
): void {
  const named = new Set(pools.map((pool) => pool.id));
  for (const pool of ledger.pools.values()) {
    if (named.has(pool.id)) continue;
    if (pool.held.size === 0) ledger.pools.delete(pool.id);
    else {
      pool.capacity = 0;
      counted(ledger, pool);
    }
  }
  for (const { id, capacity, capacity_from } of pools) {
    const pool = ledger.pools.get(id) ?? addPool(ledger, id);
    pool.capacity = capacity;
    pool.capacity_from = capacity_from;
    counted(ledger, pool);
  }
}

/** Takes a slot. False, and nothing changed, where there is none or the attempt has one already. */
export function reserve(ledger: Ledger, pool_id: string, job: string, attempt: number): boolean {
  const pool = ledger.pools.get(pool_id);
  const key = slotKey(job, attempt);
  if (pool === undefined || pool.reserved >= pool.capacity || ledger.holders.has(key)) return false;
  hold(ledger, pool, key);
  return true;
}

/** Keeps a slot for a job that has no name yet; a pool's promises outlive `releaseAll`, since who made them ends them. */
export function promise(ledger: Ledger, pool: PoolLedger): void {
  pool.promised++;
  counted(ledger, pool);
}

export function withdrawPromise(ledger: Ledger, pool: PoolLedger): void {
  pool.promised--;
  counted(ledger, pool);
}

/** Notes a slot that is taken whether we like it or not: an attempt the node came back with. */
export function holdAnyway(ledger: Ledger, pool_id: string, job: string, attempt: number): void {
  const key = slotKey(job, attempt);
  if (!ledger.holders.has(key)) hold(ledger, ledger.pools.get(pool_id) ?? addPool(ledger, pool_id), key);
}

/** Gives a slot back. @returns the pool that has it free again, or undefined if it was not held */
export function release(ledger: Ledger, job: string, attempt: number): PoolLedger | undefined {
  const key = slotKey(job, attempt);
  const pool = ledger.holders.get(key);
  if (pool === undefined) return undefined;
  ledger.holders.delete(key);
  pool.held.delete(key);
  counted(ledger, pool);
  return pool;
}

/** Forgets every slot: the lease ended, or the inventory is about to tell anew. */
export function releaseAll(ledger: Ledger): void {
  ledger.holders.clear();
  for (const pool of ledger.pools.values()) {
    pool.held.clear();
    counted(ledger, pool);
  }
}

function addPool(ledger: Ledger, id: string): PoolLedger {
  const pool: PoolLedger = {
    id,
    capacity: 0,
    capacity_from: 'default',
    reported: null,
    full: true,
    held: new Set(),
    promised: 0,
    reserved: 0,
  };
  ledger.pools.set(id, pool);
  return pool;
}

function hold(ledger: Ledger, pool: PoolLedger, key: string): void {
  pool.held.add(key);
  ledger.holders.set(key, pool);
  counted(ledger, pool);
}

/** What a pool holds, has promised or can take has changed. */
function counted(ledger: Ledger, pool: PoolLedger): void {
  pool.reserved = pool.held.size + pool.promised;
  const full = pool.reserved >= pool.capacity;
  if (full === pool.full) return;
  pool.full = full;
  ledger.turned(pool);
}
