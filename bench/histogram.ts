/** Times in ms, as they came; sorted when they are asked for. */
export interface Spread {
  count: number;
  p50: number;
  p90: number;
  p99: number;
  most: number;
}

export function spreadOf(values: Float64Array): Spread {
  const sorted = values.toSorted();
  return {
    count: sorted.length,
    p50: quantile(sorted, 0.5),
    p90: quantile(sorted, 0.9),
    p99: quantile(sorted, 0.99),
    most: quantile(sorted, 1),
  };
}

/** Of sorted values, by the nearest rank; NaN of none. */
export function quantile(sorted: ArrayLike<number>, share: number): number {
  if (sorted.length === 0) return Number.NaN;
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(share * sorted.length) - 1))]!;
}

/** Of an even number the mean of the two in the middle: the lower one would flatter whatever is to be small. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const upper = sorted[sorted.length >> 1] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : (upper + quantile(sorted, 0.5)) / 2;
}

/** Values that come one by one, without an array that is copied for each. */
export class Samples {
  #values = new Float64Array(1024);
  #count = 0;

  add(value: number): void {
    if (this.#count === this.#values.length) {
      const larger = new Float64Array(this.#count * 2);
      larger.set(this.#values);
      this.#values = larger;
    }
    this.#values[this.#count++] = value;
  }

  values(): Float64Array {
    return this.#values.slice(0, this.#count);
  }
}
