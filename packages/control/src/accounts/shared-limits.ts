import {
  type AllowanceKind,
  type Clock,
  deniedFor,
  type Denial,
  endShare,
  estimateRequest,
  givesBackMuch,
  type HeldShare,
  isAtRest,
  type KeyRecord,
  type Lack,
  learnUsage,
  limitOf,
  newHeldShare,
  newTokenEstimator,
  periodEnd,
  type RequestSize,
  runsLow,
  takeShare,
  type Timer,
  type TokenEstimator,
  trimShare,
  voidShare,
} from '@flotilla/core';
import { FlotillaError, type LimitsView } from '@flotilla/protocol';
import type { Admission } from './admission.ts';
import { createDraws, type DrawsDeps } from './draws.ts';
import { STORE_RETRY_MS, storeAway } from './limit-answers.ts';
import { costOf, type Limits } from './limits.ts';
import { type SharedAccount, shareRefused, shownHeaders, shownShares } from './shown-shares.ts';

/**
 * The limits of each key where replicas share them (decision 023). A request takes of what this replica holds, in memory:
 *
 *     asked ──all at hand──▶ admitted
 *       └──something lacks──▶ waiting ──drawn──▶ admitted
 *                                └──the store says that it is in use, or 2 s──▶ refused
 *
 * Requests of one key wait in their order. A key without limits has none of this.
 */
export interface SharedLimits extends Limits {
  /** @param latest_ms by the clock's `now_ms` */
  close(latest_ms: number): Promise<void>;
}

interface SharedLimitsDeps extends Pick<DrawsDeps, 'clock' | 'log' | 'store' | 'replica' | 'hints'> {
  /** Time of this does not keep the process alive. */
  background: Clock;
  keyOf(id: string): KeyRecord | undefined;
  /** How old the last sign of life is that the store took. */
  bumpAge_ms(): number;
  /** Others may have taken over what this replica holds when it is so old. */
  dead_ms: number;
}

interface Account extends SharedAccount {
  readonly estimator: TokenEstimator;
  readonly shares: Map<AllowanceKind, HeldShare>;
  readonly waiting: Waiting[];
}

type Amounts = Partial<Record<AllowanceKind, number>>;

interface Waiting {
  readonly size: RequestSize;
  readonly since_ms: number;
  readonly timer: Timer;
  admit(admission: Admission): void;
  refuse(error: FlotillaError): void;
}

/** For others to give back what they do not need, also where they hear of it only by a look. */
const WAIT_MS = 2000;
/** Of one key. */
const WAITING_MOST = 1000;
/** In the order in which they are asked. */
const KINDS: readonly AllowanceKind[] = ['concurrency', 'requests', 'tokens', 'budget'];

export function createSharedLimits(deps: SharedLimitsDeps): SharedLimits {
  const { clock, background } = deps;
  // One entry a key that ever asked: as many as there are keys.
  const accounts = new Map<string, Account>();
  const awake = new Set<HeldShare>();
  let waits = 0;
  const draws = createDraws({
    ...deps,
    clock: background,
    find: (key, kind) => accounts.get(key)?.shares.get(kind as AllowanceKind),
    *awake() {
      for (const share of awake) {
        if (isAtRest(share)) awake.delete(share);
        else yield share;
      }
    },
    waits: () => waits > 0,
    lackOf,
    settled(keys) {
      for (const key of keys) serveWaiting(accounts.get(key)!);
    },
  });

  return {
    admit,
    headers: (key) => headersOf(accountOf(key)),
    left,
    // Where there are others, the store knows what is open (`pledged`): nothing is restored.
    restore: (key, { tokens }) => admission(accountOf(key), null, tokens, {}),
    settled(row, before) {
      const key = row.key === null ? undefined : deps.keyOf(row.key);
      if (key === undefined || !isLimited(key)) return;
      const account = accountOf(key);
      const tokens = shareOf(account, 'tokens');
      if (tokens !== null && before !== undefined) tell(tokens, costOf(row) - costOf(before));
      // Who accepted the job tells of its cost, if it is alive; the rows know.
      const budget = shareOf(account, 'budget');
      if (budget !== null) doubt(budget);
    },
    close: (latest_ms) => draws.close(latest_ms),
  };

  function admit(key: KeyRecord, size: RequestSize): Admission | Promise<Admission> {
    const account = accountOf(key);
    if (!isLimited(key)) return admission(account, size, estimateRequest(account.estimator, size), {});
    if (account.waiting.length === 0) {
      const admitted = attempt(account, size);
      if (admitted !== null) return admitted;
    }
    return wait(account, size);
  }

  /**
   * @param since_ms when it began to wait
   * @returns null: something lacks, and may come. @throws FlotillaError where it will not
   */
  function attempt(
    account: Account,
    size: RequestSize,
    since_ms = Number.POSITIVE_INFINITY,
  ): Admission | null {
    refuseWhenForgotten();
    const amounts = amountsOf(account, size);
    let lacks = false;
    for (const kind of KINDS) {
      const amount = amounts[kind];
      if (amount === undefined) continue;
      const share = shareOf(account, kind)!;
      if (share.free >= amount) continue;
      if (isLifted(share, since_ms)) {
        delete amounts[kind];
        continue;
      }
      const denied = deniedFor(share, amount - share.free, background.now_ms());
      if (denied !== null) throw refusal(account, share, amount, denied);
      lacks = true;
    }
    if (lacks) return null;
    for (const [kind, amount] of Object.entries(amounts) as [AllowanceKind, number][]) {
      const share = shareOf(account, kind)!;
      takeShare(share, amount);
      awake.add(share);
      if (runsLow(share)) draws.due(share);
    }
    draws.later();
    return admission(account, size, estimateRequest(account.estimator, size), amounts);
  }

  function amountsOf({ key, estimator }: Account, size: RequestSize): Amounts {
    const estimate = estimateRequest(estimator, size);
    const amounts: Amounts = {};
    if (key.concurrency !== null) amounts.concurrency = 1;
    if (key.requests_per_minute !== null) amounts.requests = 1;
    // A request of more than a minute's worth waits for a whole minute's, not for ever.
    if (key.tokens_per_minute !== null) amounts.tokens = Math.min(estimate, key.tokens_per_minute);
    if (key.token_budget !== null) amounts.budget = estimate;
    return amounts;
  }

  function wait(account: Account, size: RequestSize): Promise<Admission> {
    const { waiting } = account;
    if (waiting.length >= WAITING_MOST) {
      throw new FlotillaError('rate_limited', 'Many requests of this key wait for its limits already.', {
        retry_after_ms: STORE_RETRY_MS,
        headers: headersOf(account),
      });
    }
    return new Promise((admit, refuse) => {
      const timer = background.after(WAIT_MS, () => {
        waiting.splice(waiting.indexOf(one), 1);
        waits--;
        refuse(late(account, one));
        serveWaiting(account);
      });
      const one: Waiting = { size, since_ms: background.now_ms(), timer, admit, refuse };
      waiting.push(one);
      waits++;
      for (const kind of KINDS) {
        const share = shareOf(account, kind);
        if (share !== null) dueFor(share);
      }
    });
  }

  /** In their order, until one lacks what may still come. */
  function serveWaiting(account: Account): void {
    const { waiting } = account;
    for (let first = waiting[0]; first !== undefined; first = waiting[0]) {
      try {
        const admitted = attempt(account, first.size, first.since_ms);
        if (admitted === null) break;
        first.admit(admitted);
      } catch (error) {
        first.refuse(error as FlotillaError);
      }
      first.timer.cancel();
      waiting.shift();
      waits--;
    }
    drawLacking(account);
  }

  function drawLacking(account: Account): void {
    const [first] = account.waiting;
    if (first === undefined) return;
    const amounts = amountsOf(account, first.size);
    for (const kind of KINDS) {
      const share = shareOf(account, kind);
      if (share !== null && share.free < (amounts[kind] ?? 0)) dueFor(share);
    }
  }

  /** What others were asked for is drawn when they have answered, or at the next tick. */
  function dueFor(share: HeldShare): void {
    awake.add(share);
    if (share.recalled === 0) draws.due(share);
    else draws.later();
  }

  function lackOf(share: HeldShare, free: number): Lack {
    const account = accounts.get(share.key)!;
    if (account.waiting.length === 0) return { first: 0, need: 0 };
    let first: number | null = null;
    let need = 0;
    for (const { size } of account.waiting) {
      need += amountsOf(account, size)[share.kind] ?? 0;
      first ??= need;
    }
    return { first: Math.max(0, first! - free), need: Math.max(0, need - free) };
  }

  function admission(
    account: Account,
    size: RequestSize | null,
    estimate: number,
    taken: Amounts,
  ): Admission {
    const { concurrency, requests, tokens, budget } = heldBy(account, taken);
    const start = budget?.start;
    let in_place = concurrency !== undefined;
    let state: 'open' | 'settled' | 'over' = 'open';
    let cost = 0;
    return {
      headers: headersOf(account),
      reserved: estimate,
      release() {
        if (!in_place) return;
        in_place = false;
        endShare(concurrency!, 1, 0);
        freed(account, concurrency!);
      },
      undo() {
        if (state === 'open') {
          state = 'over';
          if (requests !== undefined) end(requests, 1, 0);
          if (tokens !== undefined) end(tokens, taken.tokens!, 0);
          if (budget !== undefined) end(budget, estimate, 0);
        }
        return headersOf(account);
      },
      settle(usage) {
        if (state !== 'open') return;
        state = 'settled';
        cost = costOf(usage);
        if (tokens !== undefined) end(tokens, taken.tokens!, cost);
        if (budget !== undefined && budget.start === start) {
          trimShare(budget, estimate, cost);
          freed(account, budget);
        }
        if (size !== null) learnUsage(account.estimator, size, usage);
      },
      recorded() {
        if (state !== 'settled') return;
        state = 'over';
        if (budget !== undefined) end(budget, cost, cost);
      },
      forget() {
        if (state !== 'settled') return;
        state = 'over';
        if (budget === undefined) return;
        end(budget, cost, 0);
        // It may be there all the same: an answer of the store was lost.
        doubt(budget);
      },
    };

    function end(share: HeldShare, amount: number, used: number): void {
      // Taken in a period that is over: nobody counts it any more.
      if (share === budget && budget.start !== start) return;
      endShare(share, amount, used);
      freed(account, share);
    }
  }

  function heldBy(account: Account, taken: Amounts): Partial<Record<AllowanceKind, HeldShare>> {
    const held: Partial<Record<AllowanceKind, HeldShare>> = {};
    for (const kind of Object.keys(taken) as AllowanceKind[]) held[kind] = account.shares.get(kind)!;
    return held;
  }

  function freed(account: Account, share: HeldShare): void {
    awake.add(share);
    // Who waits here comes first, then who waits elsewhere.
    if (account.waiting.length > 0) serveWaiting(account);
    if (givesBackMuch(share)) draws.due(share);
    else draws.later();
  }

  function tell(share: HeldShare, spent: number): void {
    share.spent += spent;
    awake.add(share);
    draws.later();
  }

  function doubt(share: HeldShare): void {
    share.doubt = true;
    awake.add(share);
    draws.later();
  }

  function accountOf(key: KeyRecord): Account {
    let account = accounts.get(key.id);
    if (account === undefined) {
      account = { key, estimator: newTokenEstimator(), shares: new Map(), waiting: [] };
      accounts.set(key.id, account);
    }
    account.key = key;
    return account;
  }

  /** Null: the key has no such limit. What was drawn under another one is not spent any more. */
  function shareOf({ key, shares }: Account, kind: AllowanceKind): HeldShare | null {
    const limit = limitOf(key, kind);
    if (limit === null) return null;
    let share = shares.get(kind);
    if (share === undefined) {
      share = newHeldShare(key.id, kind, limit);
      shares.set(kind, share);
    }
    if (share.limit !== limit || (kind === 'budget' && isOver(share, key))) voidShare(share);
    share.limit = limit;
    return share;
  }

  /** It was drawn in a period that is over since, by the clock here; what the store's clock says counts. */
  function isOver({ start, seen }: HeldShare, { token_budget }: KeyRecord): boolean {
    const end = seen === null ? null : periodEnd(token_budget!.period, start);
    if (end === null || clock.wall_ms() < end) return false;
    return clock.wall_ms() - (background.now_ms() - seen!.at_ms) < end;
  }

  /** Where others may have taken over what is held here, it is not to be spent. */
  function refuseWhenForgotten(): void {
    if (deps.bumpAge_ms() >= deps.dead_ms) throw storeAway();
  }

  /** Others hold it and do not answer, or the store does not. */
  function late(account: Account, { size, since_ms }: Waiting): FlotillaError {
    const amounts = amountsOf(account, size);
    for (const kind of KINDS) {
      const share = account.shares.get(kind);
      const amount = amounts[kind];
      if (share === undefined || amount === undefined || share.free >= amount) continue;
      if (share.seen === null || share.seen.at_ms <= since_ms) return storeAway();
      share.denied = {
        verdict: 'short',
        first: amount - share.free,
        until_ms: background.now_ms() + 1000,
        there_ms: background.now_ms() + 1000,
      };
      return refusal(account, share, amount, share.denied);
    }
    return storeAway();
  }

  async function left(key: KeyRecord): Promise<LimitsView> {
    const account = accountOf(key);
    const shares = KINDS.map((kind) => shareOf(account, kind)).filter((share) => share !== null);
    await Promise.all(shares.map((share) => draws.told(share)));
    return shownShares(account, background.now_ms());
  }

  function headersOf(account: Account): Record<string, string> {
    return shownHeaders(account, background.now_ms());
  }

  function refusal(account: Account, share: HeldShare, amount: number, denied: Denial): FlotillaError {
    return shareRefused(account, share, amount, denied, background.now_ms());
  }
}

/** The store has said since then that the key has no such limit, which the snapshot here does not know yet. */
function isLifted({ seen }: HeldShare, since_ms: number): boolean {
  return seen !== null && seen.drawn.size === null && seen.at_ms >= since_ms;
}

function isLimited(key: KeyRecord): boolean {
  return (
    key.requests_per_minute !== null ||
    key.concurrency !== null ||
    key.tokens_per_minute !== null ||
    key.token_budget !== null
  );
}
