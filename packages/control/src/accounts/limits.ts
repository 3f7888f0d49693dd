import {
  addReservation,
  type BudgetWindow,
  type BudgetWindows,
  type Clock,
  dropReservation,
  estimateRequest,
  giveTokens,
  type KeyRecord,
  type KeySpending,
  learnUsage,
  newBucket,
  newBudgetWindows,
  newTokenEstimator,
  periodStart,
  type RequestSize,
  type Reservation,
  reserveBudget,
  rollWindows,
  spend,
  takeTokens,
  type TokenEstimator,
  type UsageRecord,
  waitFor,
} from '@flotilla/core';
import type { LimitsView, TokenBudget, TokenUsage } from '@flotilla/protocol';
import type { Admission } from './admission.ts';
import { budgetHeld, budgetSpent, budgetView, tooFast, tooManyAtOnce } from './limit-answers.ts';
import { type Rate, type RateLeft, rateHeaders, rateLeft } from './rate-headers.ts';

/**
 * The limits of each key where this replica is alone: requests and tokens per minute (buckets that hold a minute's worth), requests
 * at once, and a budget of tokens per period. All in memory: a request asks no store.
 *
 *     usage rows ──at start──▶ spent ◀──settle── reserved ◀──admit
 *
 * What a key has spent is the sum of its usage rows, so a crash loses what requests under way had reserved and nothing
 * else; what detached jobs reserve is restored at the start, and the buckets are full then. It is kept for keys without a
 * budget too: one that is given later counts what was before it.
 */
export interface Limits {
  /**
   * At once, or, where replicas share a limit and what is held here does not suffice, after a short while.
   * @throws FlotillaError `rate_limited`, `insufficient_credit` or `unavailable`, which take nothing from the key
   */
  admit(key: KeyRecord, size: RequestSize): Admission | Promise<Admission>;
  /** `x-ratelimit-*` as they stand, for answers that take nothing. */
  headers(key: KeyRecord): Record<string, string>;
  left(key: KeyRecord): LimitsView | Promise<LimitsView>;
  /**
   * Reserves again what work that was open when the last process ended had reserved, whatever is left of the budget. Of a
   * minute it takes nothing: what that work took of one is long past.
   */
  restore(key: KeyRecord, reserved: Pick<Reservation, 'tokens' | 'created_at'>): Admission;
  /**
   * Counts a usage row that no admission stands for.
   * @param before what the row said until it was corrected: only the difference counts then
   */
  settled(row: CountedRow, before?: TokenUsage): void;
}

/** Of a replica that is alone. */
interface OwnLimits extends Limits {
  admit(key: KeyRecord, size: RequestSize): Admission;
  left(key: KeyRecord): LimitsView;
}

type CountedRow = TokenUsage & Pick<UsageRecord, 'key' | 'created_at'>;

interface Account {
  in_flight: number;
  requests: Rate | null;
  tokens: Rate | null;
  readonly estimator: TokenEstimator;
  readonly windows: BudgetWindows;
}

/** What an admission has taken of its key's limits. */
interface Held {
  /** Where its budget's tokens are reserved; null: it has none. */
  window: BudgetWindow | null;
  estimate: number;
  requests: Rate | null;
  tokens: Rate | null;
  /** Of the minute's tokens. */
  taken: number;
  /** Null: not known any more. */
  size: RequestSize | null;
  /** It has a place among the requests at once. */
  in_place: boolean;
}

/** @param spending read from the store after the last process's last write, and before the first request */
export function createLimits(clock: Clock, spending: readonly KeySpending[] = []): OwnLimits {
  // One entry a key that ever asked: as many as there are keys.
  const accounts = new Map<string, Account>();
  const books: Books = { clock, count, headersOf };
  for (const { key, ...spent } of spending) accounts.set(key, newAccount(spent));

  return {
    admit,
    headers: (key) => headersOf(accountOf(key)),
    left,
    restore(key, { tokens, created_at }) {
      const account = accountOf(key);
      const period = key.token_budget?.period;
      // Made in a period that is over, it costs that one.
      const runs = period !== undefined && periodStart(period, created_at) === account.windows[period].start;
      const window = runs ? account.windows[period] : null;
      if (window !== null) addReservation(window, tokens);
      const nothing = { requests: null, tokens: null, taken: 0, size: null, in_place: false };
      return new OwnAdmission(books, account, { window, estimate: tokens, ...nothing });
    },
    settled(row, before) {
      const { key, created_at } = row;
      if (key === null) return;
      const account = accounts.get(key) ?? addAccount(key);
      const cost = costOf(row) - (before === undefined ? 0 : costOf(before));
      count(account, cost, created_at);
      const { tokens } = account;
      if (tokens !== null) giveTokens(tokens.bucket, tokens.per_minute, -cost, clock.now_ms());
    },
  };

  function admit(key: KeyRecord, size: RequestSize): Admission {
    const account = accountOf(key);
    const { requests, tokens } = account;
    const now_ms = clock.now_ms();
    const estimate = estimateRequest(account.estimator, size);
    // A request of more than a minute's worth waits for a whole minute's, not for ever.
    const taken = tokens === null ? 0 : Math.min(estimate, tokens.per_minute);
    refuseAtOnce(account, key);
    refuseRate(account, requests, 1, 'requests');
    refuseRate(account, tokens, taken, 'tokens');
    const window = reserve(account, key.token_budget, estimate);
    if (requests !== null) takeTokens(requests.bucket, requests.per_minute, 1, now_ms);
    if (tokens !== null) takeTokens(tokens.bucket, tokens.per_minute, taken, now_ms);
    account.in_flight += 1;
    return new OwnAdmission(books, account, {
      window,
      estimate,
      requests,
      tokens,
      taken,
      size,
      in_place: true,
    });
  }

  function count(account: Account, cost: number, created_at: number): void {
    rollWindows(account.windows, clock.wall_ms());
    spend(account.windows, cost, created_at);
  }

  function accountOf(key: KeyRecord): Account {
    const account = accounts.get(key.id) ?? addAccount(key.id);
    account.requests = rateOf(account.requests, key.requests_per_minute);
    account.tokens = rateOf(account.tokens, key.tokens_per_minute);
    rollWindows(account.windows, clock.wall_ms());
    return account;
  }

  function addAccount(key: string): Account {
    const account = newAccount();
    accounts.set(key, account);
    return account;
  }

  function newAccount(spent: Partial<KeySpending> = {}): Account {
    return {
      in_flight: 0,
      requests: null,
      tokens: null,
      estimator: newTokenEstimator(),
      windows: newBudgetWindows(clock.wall_ms(), spent),
    };
  }

  /** A limit that was changed counts at once, with a full bucket. */
  function rateOf(rate: Rate | null, per_minute: number | null): Rate | null {
    if (per_minute === null) return null;
    if (rate?.per_minute === per_minute) return rate;
    return { bucket: newBucket(per_minute, clock.now_ms()), per_minute };
  }

  function refuseAtOnce(account: Account, { concurrency }: KeyRecord): void {
    if (concurrency === null || account.in_flight < concurrency) return;
    throw tooManyAtOnce(concurrency, headersOf(account));
  }

  function refuseRate(
    account: Account,
    rate: Rate | null,
    amount: number,
    what: 'requests' | 'tokens',
  ): void {
    if (rate === null) return;
    const wait_ms = waitFor(rate.bucket, rate.per_minute, amount, clock.now_ms());
    if (wait_ms === 0) return;
    throw tooFast(what, rate.per_minute, amount, wait_ms, headersOf(account));
  }

  /** @returns where it is reserved, or null where there is no budget */
  function reserve(account: Account, budget: TokenBudget | null, estimate: number): BudgetWindow | null {
    if (budget === null) return null;
    const window = account.windows[budget.period];
    switch (reserveBudget(window, budget.tokens, estimate)) {
      case 'reserved':
        return window;
      case 'held':
        throw budgetHeld(estimate, headersOf(account));
      case 'exhausted':
        throw budgetSpent(budget, window.start, window.spent, headersOf(account));
    }
  }

  function headersOf(account: Account): Record<string, string> {
    if (account.requests === null && account.tokens === null) return NO_HEADERS;
    const now_ms = clock.now_ms();
    return {
      ...rateHeaders('requests', leftIn(account.requests, now_ms)),
      ...rateHeaders('tokens', leftIn(account.tokens, now_ms)),
    };
  }

  function left(key: KeyRecord): LimitsView {
    const account = accountOf(key);
    const now_ms = clock.now_ms();
    const { concurrency, token_budget } = key;
    return {
      key: key.id,
      requests: leftIn(account.requests, now_ms),
      tokens: leftIn(account.tokens, now_ms),
      concurrency: concurrency === null ? null : { limit: concurrency, in_use: account.in_flight },
      budget: token_budget === null ? null : budgetView(token_budget, account.windows[token_budget.period]),
    };
  }
}

function leftIn(rate: Rate | null, now_ms: number): RateLeft | null {
  return rate === null ? null : rateLeft(rate, now_ms);
}

export function costOf({ prompt_tokens, completion_tokens }: TokenUsage): number {
  return prompt_tokens + completion_tokens;
}

const NO_HEADERS: Record<string, string> = Object.freeze({});

interface Books {
  clock: Clock;
  count(account: Account, cost: number, created_at: number): void;
  headersOf(account: Account): Record<string, string>;
}

/** Little more than what it holds: a hundred thousand detached jobs have one each, for as long as they wait. */
class OwnAdmission implements Admission {
  readonly headers: Record<string, string>;
  readonly #books: Books;
  readonly #account: Account;
  readonly #held: Held;
  #state: 'open' | 'settled' | 'over' = 'open';
  #settled: { cost: number; created_at: number } | null = null;

  constructor(books: Books, account: Account, held: Held) {
    this.#books = books;
    this.#account = account;
    this.#held = held;
    this.headers = books.headersOf(account);
  }

  get reserved(): number {
    return this.#held.estimate;
  }

  release(): void {
    if (this.#held.in_place) this.#account.in_flight -= 1;
    this.#held.in_place = false;
  }

  undo(): Record<string, string> {
    const { requests } = this.#held;
    if (this.#state === 'open') {
      this.#state = 'over';
      this.#put(0);
      if (requests !== null) giveTokens(requests.bucket, requests.per_minute, 1, this.#books.clock.now_ms());
    }
    return this.#books.headersOf(this.#account);
  }

  settle(usage: TokenUsage, created_at: number): void {
    if (this.#state !== 'open') return;
    const cost = costOf(usage);
    this.#state = 'settled';
    this.#settled = { cost, created_at };
    this.#put(cost);
    this.#books.count(this.#account, cost, created_at);
    if (this.#held.size !== null) learnUsage(this.#account.estimator, this.#held.size, usage);
  }

  recorded(): void {
    if (this.#state === 'settled') this.#state = 'over';
  }

  forget(): void {
    if (this.#state !== 'settled' || this.#settled === null) return;
    this.#state = 'over';
    spend(this.#account.windows, -this.#settled.cost, this.#settled.created_at);
  }

  #put(cost: number): void {
    const { window, tokens, estimate, taken } = this.#held;
    if (window !== null) dropReservation(window, estimate);
    // A rate that was changed meanwhile has begun anew.
    if (tokens !== null)
      giveTokens(tokens.bucket, tokens.per_minute, taken - cost, this.#books.clock.now_ms());
  }
}
