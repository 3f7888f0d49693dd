import type { TokenUsage } from '@flotilla/protocol';

/**
 * What one accepted piece of work holds of its key's limits: attached requests and detached jobs alike.
 *
 *     open ──settle──▶ settled ──recorded, or forget──▶ over
 *       └────undo────▶ over
 *
 * Its place among the requests at once is apart from that: `release` gives it back, at any time. Each call counts once;
 * attempts and failovers know nothing of it, so nothing is counted twice.
 */
export interface Admission {
  /** `x-ratelimit-*` headers as they stood after it was admitted. */
  readonly headers: Record<string, string>;
  /** Tokens, until it is settled or undone. */
  readonly reserved: number;
  /** Gives back its place among the requests at once. */
  release(): void;
  /** Gives back the request and its tokens, for work that was refused before it began. @returns the headers after that */
  undo(): Record<string, string>;
  /**
   * What it has cost takes the place of what was reserved for it.
   * @param created_at as in its usage row, which tells the period that it counts in
   */
  settle(usage: TokenUsage, created_at: number): void;
  /** Its usage row is committed. Until then no other replica is told of its cost. */
  recorded(): void;
  /** Its usage row will never be: what no row says is not counted, now as after a restart. */
  forget(): void;
}
