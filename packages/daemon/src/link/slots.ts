/**
 * The slots of this node's pools, counted here and nowhere else on the node: what is over capacity is refused, whatever
 * the control plane believes. A pool that shrinks below what runs in it takes nothing until enough has ended.
 */
export interface PoolLoad {
  id: string;
  in_flight: number;
  capacity: number;
}

export class Slots {
  readonly #pools = new Map<string, PoolLoad>();

  constructor(pools: readonly { id: string; capacity: number }[] = []) {
    this.resize(pools);
  }

  /** The pools as configured now; one that is gone stays until it is empty, without room. */
  resize(pools: readonly { id: string; capacity: number }[]): void {
    const wanted = new Map(pools.map((pool) => [pool.id, pool.capacity]));
    for (const pool of this.#pools.values()) {
      pool.capacity = wanted.get(pool.id) ?? 0;
      if (!wanted.has(pool.id) && pool.in_flight === 0) this.#pools.delete(pool.id);
    }
    for (const [id, capacity] of wanted) {
      if (!this.#pools.has(id)) this.#pools.set(id, { id, in_flight: 0, capacity });
    }
  }

  /** @returns false when the pool is full, or is none */
  take(id: string): boolean {
    const pool = this.#pools.get(id);
    if (pool === undefined || pool.in_flight >= pool.capacity) return false;
    pool.in_flight++;
    return true;
  }

  release(id: string): void {
    const pool = this.#pools.get(id);
    if (pool === undefined || pool.in_flight === 0) throw new Error(`A slot of ${id} was released twice.`);
    pool.in_flight--;
  }

  /** A copy for a beat. */
  load(): PoolLoad[] {
    return Array.from(this.#pools.values(), (pool) => ({ ...pool }));
  }
}
