import type { Page } from '@flotilla/core';
import type { Param } from './sql.ts';

/** A page out of a query that asked for one row more than the page holds: that row tells whether there is a next. */
export function pageOf<T>(rows: T[], limit: number, id: (row: T) => string): Page<T> {
  const kept = rows.slice(0, limit);
  const last = kept.at(-1);
  return { rows: kept, next_after: rows.length > limit && last !== undefined ? id(last) : null };
}

/**
 * The conditions of one listing and their parameters. A text is made for each set of filters, rather than one text with
 * `$1 is null or …`, whose generic plan could use no index.
 */
export class Conditions {
  readonly params: Param[] = [];
  readonly #texts: string[] = [];

  /** Adds a parameter and returns its place. */
  param(value: Param): string {
    return `$${this.params.push(value)}`;
  }

  /** Adds a condition, unless its value is absent. */
  when<T extends Param>(value: T | undefined, text: (place: string) => string): void {
    if (value !== undefined) this.#texts.push(text(this.param(value)));
  }

  add(text: string): void {
    this.#texts.push(text);
  }

  get where(): string {
    return this.#texts.length === 0 ? '' : `where ${this.#texts.join(' and ')}`;
  }
}
