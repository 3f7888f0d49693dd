import type { Store } from '@flotilla/core';
import type fc from 'fast-check';
import { T0 } from '../conformance/rows.ts';
import type { Database } from './store/database.ts';

/** A random call of the store's port, whose arguments are made of what there is when it comes. */
export interface Call {
  /** `wait`: no call, the clock goes on by its argument. */
  name: keyof Store | 'wait';
  args: (database: Database) => unknown[];
  /** The port promises no order of the answer's rows. */
  unordered?: true;
  /** What the arguments are made of, to be read in a counterexample. */
  told: unknown;
}

/** What the clock shows first. */
export const START = T0 + 1000;

export function call<Told>(
  name: Call['name'],
  told: fc.Arbitrary<Told>,
  args: (told: Told, database: Database) => unknown[] = (value) => [value],
  unordered?: 'unordered',
): fc.Arbitrary<Call> {
  return told.map((value) => ({
    name,
    told: value,
    args: (database) => args(value, database),
    ...(unordered && { unordered: true }),
  }));
}

/** For a batch that has one item of each. */
export function once<Item>(items: Item[], id: (item: Item) => string): Item[] {
  return [...new Map(items.map((item) => [id(item), item])).values()];
}
