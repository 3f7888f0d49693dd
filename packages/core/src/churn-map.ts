/**
 * A map for what comes and goes with every request. A `Map` that is cleaned up, or grows, moves to a new table and leaves
 * the former one behind, with what was in it and with its way to the new one. One former table that has become old so
 * keeps all later ones from the garbage collector until its next full run: of some ten thousand requests that are over,
 * most would be copied to the old space first. Tables of this one hold cells, which are emptied when an entry goes.
 */
export class ChurnMap<K, V> {
  readonly #cells = new Map<K, Cell<V>>();

  get size(): number {
    return this.#cells.size;
  }

  get(key: K): V | undefined {
    return this.#cells.get(key)?.value;
  }

  has(key: K): boolean {
    return this.#cells.has(key);
  }

  set(key: K, value: V): this {
    const cell = this.#cells.get(key);
    if (cell === undefined) this.#cells.set(key, { value });
    else cell.value = value;
    return this;
  }

  delete(key: K): boolean {
    const cell = this.#cells.get(key);
    if (cell === undefined) return false;
    cell.value = undefined;
    return this.#cells.delete(key);
  }

  clear(): void {
    for (const cell of this.#cells.values()) cell.value = undefined;
    this.#cells.clear();
  }

  keys(): MapIterator<K> {
    return this.#cells.keys();
  }

  /** In the order in which they came, as a `Map` does; entries that go meanwhile are left out. */
  *values(): Generator<V> {
    for (const cell of this.#cells.values()) yield cell.value!;
  }
}

interface Cell<V> {
  value: V | undefined;
}
