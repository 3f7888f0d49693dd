import type { KeyRecord } from './store.ts';

/**
 * One limit of one key, as replicas share it.
 *
 *     size = used + pledged + what replicas hold + what can be drawn
 *
 * A replica admits from what it holds alone, so what all of them admit never adds up to more than the size.
 */
export interface Allowance {
  key: string;
  kind: AllowanceKind;
  /** The key's limit as it was at the last draw; null: the key has none of this kind now. */
  size: number | null;
  /**
   * Of requests and tokens a minute: what was used and has not come back with time; of a budget: what was spent in its
   * period; of concurrency: nothing.
   */
  used: number;
  /** Of a budget: what open detached jobs reserve whose replica is no more. */
  pledged: number;
  /** When `used` was so, by the store's clock. */
  at: number;
  /** When the budget's period began, by the store's clock; 0 for `total` and for the other kinds. */
  start: number;
  /** When `used` and `pledged` of a budget were last read from the rows themselves. */
  counted_at: number;
  /** They have to be before anything is drawn. */
  stale: boolean;
  /** They should be before long. */
  doubt: boolean;
  /** How often replicas were asked to give back what they do not use. */
  recall: number;
  /** By replica. */
  shares: Record<string, Share>;
}

export type KeyLimits = Pick<
  KeyRecord,
  'requests_per_minute' | 'tokens_per_minute' | 'concurrency' | 'token_budget'
>;

export type AllowanceKind = 'requests' | 'tokens' | 'concurrency' | 'budget';

/** What one replica has of it, as it said last: it can have used some of that since. */
export interface Share {
  /** Drawn and not used up, with what its work under way has. */
  held: number;
  /** Of that, what its work under way has. */
  busy: number;
  /** The recall after which it kept only what it needs. */
  answered: number;
}

/** What a replica tells of its share, and what it asks for. */
export interface Draw {
  key: string;
  kind: AllowanceKind;
  held: number;
  busy: number;
  /** Used since it last told; less than 0: given back after use was told. */
  spent: number;
  /** The limit that it has drawn under, as the store said then. */
  size: number | null;
  /** The period of a budget that all of this is about. */
  start: number;
  /** What the first that waits lacks; 0: nobody waits. */
  first: number;
  /** What all that wait lack. */
  need: number;
  /** What it would like to have at hand beside that. */
  ahead: number;
  /** The recall that it waits for; 0: none yet. */
  recalled: number;
  /** The recall that this answers. */
  answers: number;
  /** Something was spent that nobody may have told of: the rows are to be counted again before long. */
  doubt: boolean;
}

export interface Drawn {
  key: string;
  kind: AllowanceKind;
  granted: number;
  /** Of that, what goes beyond a budget: not for anybody else once its request has ended. */
  lent: number;
  verdict: DrawVerdict;
  /** Until when a minute's rate has what the first lacks, if nobody else uses it; else 0. */
  wait_ms: number;
  size: number | null;
  used: number;
  pledged: number;
  start: number;
  others_held: number;
  others_busy: number;
  recall: number;
}

export type DrawVerdict =
  /** The first that waits has what it lacks, or nobody waits. */
  | 'granted'
  /** Others have it and were asked for it. */
  | 'recalled'
  /** It is in use. */
  | 'short'
  /** A budget that is spent, until its period ends. */
  | 'exhausted';

export interface SharedLimits {
  /**
   * Takes what the replica tells and gives what it draws, for all allowances in one transaction, each once in it: all are
   * decided on what was there before. Told twice after a lost
   * answer, `spent` counts twice, which a budget's next counting puts right.
   * @returns in the order of the draws, or null where the replica has no row: another has taken it for dead
   */
  drawLimits(replica: string, draws: readonly Draw[]): Promise<Drawn[] | null>;
}
