import { createHash } from 'node:crypto';
import type { Tally } from './format.ts';

/** Counts the rows of one table and sums their hashes, so that two stores compare equal whatever order they read in. */
export class TableTally {
  #rows = 0;
  #sum = 0n;

  add(row: string): void {
    this.#rows += 1;
    this.#sum += createHash('sha256').update(row).digest().readBigUInt64BE();
  }

  result(): Tally {
    return { rows: this.#rows, digest: BigInt.asUintN(64, this.#sum).toString(16).padStart(16, '0') };
  }
}
