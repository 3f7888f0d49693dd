import type { Random } from '@flotilla/core';
import { seededRandom } from '../support/seeded-random.ts';

/** Chance from a seed. Each part of a world has its own, so that a change in one leaves the others as they were. */
export class Chance implements Random {
  readonly next: () => number;

  constructor(seed: number) {
    this.next = seededRandom(seed);
  }

  /** Another one, that goes its own way from here. */
  fork(): Chance {
    return new Chance(Math.floor(this.next() * 2 ** 32));
  }

  bytes(length: number): Uint8Array {
    return Uint8Array.from({ length }, () => Math.floor(this.next() * 256));
  }

  /** In [least, most). */
  between(least: number, most: number): number {
    return least + this.next() * (most - least);
  }

  /** A whole number from least to most, both among them. */
  whole(least: number, most: number): number {
    return least + Math.floor(this.next() * (most - least + 1));
  }

  happens(probability: number): boolean {
    return this.next() < probability;
  }

  pick<T>(list: readonly T[]): T {
    return list[Math.floor(this.next() * list.length)]!;
  }

  /** Mostly `least`, seldom much more. */
  delay(least_ms: number, most_ms: number): number {
    return least_ms + (most_ms - least_ms) * this.next() ** 4;
  }
}
