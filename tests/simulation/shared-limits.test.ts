import type { KeyRecord, RequestSize, Store } from '@flotilla/core';
import { ManualClock } from '@flotilla/core/testing';
import { FlotillaError, type TokenUsage } from '@flotilla/protocol';
import { describe, expect, test } from 'vitest';
import type { Admission } from '../../packages/control/src/accounts/admission.ts';
import { createSharedLimits, type SharedLimits } from '../../packages/control/src/accounts/shared-limits.ts';
import { createHints } from '../../packages/control/src/bus/hints.ts';
import { aKey } from '../conformance/rows.ts';
import { quiet } from '../support/store.ts';
import { createDatabase, type Database } from './store/database.ts';
import { storeAway } from './store/failure.ts';

const SIZE: RequestSize = { prompt_tokens: 18, answer_tokens: 50 };
/** A key's first request of that size reserves this much. */
const RESERVED = 100;
const HOUR_MS = 3_600_000;

const usage = (tokens: number): TokenUsage => ({
  prompt_tokens: 18,
  completion_tokens: tokens - 18,
  cached_tokens: 0,
  estimated: false,
});

/** Replicas on the store of the simulation, in time that stands still until it is moved. */
class Replicas {
  readonly clock = new ManualClock();
  readonly database: Database = createDatabase({ now_ms: () => this.clock.wall_ms() });
  readonly store: Store = this.database.connect(async (_call, commit) => commit());
  /** Hints arrive. */
  bus = true;
  /** Undefined: the store answers at once. */
  reach: (() => Promise<void>) | undefined;
  draws = 0;
  /** Of those that one draw asked for more than once: each would be decided on the same row. */
  readonly drawn_twice: string[] = [];
  bump_age_ms = 0;
  readonly #hearers: ((from: string, data: Uint8Array) => void)[] = [];

  async start(id: string): Promise<SharedLimits> {
    await this.store.enterReplica(id, true);
    const bus = {
      connected: true,
      tell: (data: Uint8Array) => {
        if (this.bus) for (const hear of this.#hearers) hear(id, data);
      },
      send: () => undefined,
      listen: () => undefined,
      close: async () => undefined,
    };
    const hints = createHints(bus, quiet);
    this.#hearers.push((from, data) => {
      if (from !== id) hints.take(from, data);
    });
    const store = this.database.connect(async (_call, commit) => {
      this.draws++;
      await this.reach?.();
      return commit();
    });
    return createSharedLimits({
      clock: this.clock,
      background: this.clock,
      log: quiet,
      store: {
        drawLimits: (by, draws) => {
          const names = draws.map(({ key, kind }) => `${kind} ${key}`);
          this.drawn_twice.push(...names.filter((name, index) => names.indexOf(name) < index));
          return store.drawLimits(by, draws);
        },
      },
      replica: id,
      hints,
      keyOf: (of) => this.database.tables.keys.get(of),
      bumpAge_ms: () => this.bump_age_ms,
      dead_ms: 20_000,
    });
  }

  async key(limits: Partial<KeyRecord>): Promise<KeyRecord> {
    const key = aKey({ requests_per_minute: null, ...limits });
    await this.store.insertKey(key);
    return key;
  }

  held(): number {
    const shares = [...this.database.tables.allowances.values()].flatMap((row) => Object.values(row.shares));
    return shares.reduce((sum, { held }) => sum + held, 0);
  }

  /** What is under way without time. */
  async settle(): Promise<void> {
    for (let turn = 0; turn < 100; turn++) await Promise.resolve();
  }

  async pass(ms: number): Promise<void> {
    for (let passed = 0; passed < ms; passed += 100) {
      await this.settle();
      this.clock.advance(100);
    }
    await this.settle();
  }
}

const codeOf = (answer: Admission | Promise<Admission>): Promise<string> =>
  Promise.resolve(answer).then(
    () => 'admitted',
    (error: unknown) => (error instanceof FlotillaError ? error.code : String(error)),
  );
const codeOfCall = (call: () => Admission | Promise<Admission>): Promise<string> =>
  codeOf((async () => call())());

describe('limits that replicas share', () => {
  test('a key without limits is admitted at once, and nobody asks the store', async () => {
    const replicas = new Replicas();
    const limits = await replicas.start('a');
    const key = await replicas.key({});
    for (let n = 0; n < 100; n++) {
      const admission = limits.admit(key, SIZE);
      if (admission instanceof Promise) throw new Error('It waits.');
      expect(admission.headers).toEqual({});
      admission.settle(usage(20), 0);
      admission.recorded();
      admission.release();
    }
    await replicas.pass(2000);
    expect(replicas.draws).toBe(0);
    expect(replicas.clock.pending).toBe(0);
  });

  test('the first of a key waits for one draw, those after it are admitted at once', async () => {
    const replicas = new Replicas();
    const limits = await replicas.start('a');
    const key = await replicas.key({
      requests_per_minute: 1000,
      tokens_per_minute: 1_000_000,
      concurrency: 50,
      token_budget: { tokens: 10_000_000, period: 'day' },
    });
    const first = limits.admit(key, SIZE);
    expect(first).toBeInstanceOf(Promise);
    (await first).release();
    await replicas.settle();
    for (let n = 0; n < 50; n++) {
      const admission = limits.admit(key, SIZE);
      if (admission instanceof Promise) throw new Error(`The ${n}th waits.`);
      admission.release();
      await replicas.settle();
    }
    expect(replicas.draws).toBeLessThan(20);
  });

  test('what was drawn is spent while the store is away; then 503 with Retry-After, and nothing is taken', async () => {
    const replicas = new Replicas();
    const limits = await replicas.start('a');
    const key = await replicas.key({ requests_per_minute: 100 });
    for (let n = 0; n < 10; n++) {
      await limits.admit(key, SIZE);
      await replicas.settle();
    }
    const held = replicas.held();
    expect(held).toBeGreaterThan(0);
    replicas.reach = () => Promise.reject(storeAway());
    let refused: Promise<unknown> | null = null;
    for (let admitted = 0; refused === null; admitted++) {
      const admission = limits.admit(key, SIZE);
      expect(admitted).toBeLessThanOrEqual(held);
      if (admission instanceof Promise) refused = admission.catch((error: unknown) => error);
    }
    await replicas.pass(2100);
    expect(await refused).toMatchObject({ code: 'unavailable', details: { retry_after_ms: 2000 } });
    replicas.reach = undefined;
    await replicas.pass(61_000);
    const all = Array.from({ length: 110 }, () => codeOfCall(() => limits.admit(key, SIZE)));
    await replicas.pass(100);
    const codes = await Promise.all(all);
    expect(codes.filter((code) => code === 'admitted')).toHaveLength(100);
  });

  test('a store that does not answer at all is waited for 2 s', async () => {
    const replicas = new Replicas();
    const limits = await replicas.start('a');
    const key = await replicas.key({ concurrency: 5 });
    replicas.reach = () => new Promise(() => undefined);
    const refused = codeOf(limits.admit(key, SIZE));
    let heard: string | null = null;
    void refused.then((code) => (heard = code));
    await replicas.pass(1900);
    expect(heard).toBeNull();
    await replicas.pass(200);
    expect(heard).toBe('unavailable');
  });

  test('no more than a thousand requests of a key wait', async () => {
    const replicas = new Replicas();
    const limits = await replicas.start('a');
    const key = await replicas.key({ concurrency: 5 });
    replicas.reach = () => new Promise(() => undefined);
    const waiting = Array.from({ length: 1000 }, () => codeOf(limits.admit(key, SIZE)));
    expect(await codeOfCall(() => limits.admit(key, SIZE))).toBe('rate_limited');
    await replicas.pass(2100);
    expect(new Set(await Promise.all(waiting))).toEqual(new Set(['unavailable']));
  });

  test('a replica that others may have taken for dead admits nothing to keys with limits', async () => {
    const replicas = new Replicas();
    const limits = await replicas.start('a');
    const key = await replicas.key({ requests_per_minute: 100 });
    await limits.admit(key, SIZE);
    await replicas.settle();
    replicas.bump_age_ms = 20_000;
    expect(await codeOfCall(() => limits.admit(key, SIZE))).toBe('unavailable');
    expect(await codeOfCall(() => limits.admit(aKey({ requests_per_minute: null }), SIZE))).toBe('admitted');
  });

  test('a request that waits when others may take the replica for dead is not admitted by what comes free', async () => {
    const replicas = new Replicas();
    const limits = await replicas.start('a');
    const key = await replicas.key({ concurrency: 1 });
    const before = await limits.admit(key, SIZE);
    replicas.reach = () => new Promise(() => undefined);
    const waiting = codeOf(limits.admit(key, SIZE));
    replicas.bump_age_ms = 20_000;
    before.release();
    expect(await waiting).toBe('unavailable');
  });

  test('a request that waits for a limit which was lifted is admitted by the first draw that says so', async () => {
    const replicas = new Replicas();
    const [a, b] = [await replicas.start('a'), await replicas.start('b')];
    const key = await replicas.key({ concurrency: 1, requests_per_minute: 10 });
    await a.admit(key, SIZE);
    replicas.database.tables.keys.set(key.id, { ...key, concurrency: null });
    const { draws } = replicas;
    replicas.reach = async () => {
      if (replicas.draws > draws + 100) throw storeAway();
    };
    expect(await codeOf(b.admit(key, SIZE))).toBe('admitted');
    await replicas.settle();
    expect(replicas.draws - draws).toBeLessThan(5);
  });

  test('what one replica holds without need is given back to a request at another, with hints at once, without within a second', async () => {
    for (const bus of [true, false]) {
      const replicas = new Replicas();
      replicas.bus = bus;
      const [a, b] = [await replicas.start('a'), await replicas.start('b')];
      const key = await replicas.key({ concurrency: 1 });
      (await a.admit(key, SIZE)).release();
      let admitted = false;
      void Promise.resolve(b.admit(key, SIZE)).then(() => (admitted = true));
      await replicas.settle();
      expect(admitted).toBe(bus);
      await replicas.pass(1000);
      expect(admitted).toBe(true);
      expect(await codeOfCall(() => b.admit(key, SIZE)).then(String)).toBe('rate_limited');
    }
  });

  test('a request that is refused before it was work takes nothing, and one that ends gives back what it did not use', async () => {
    const replicas = new Replicas();
    const [a, b] = [await replicas.start('a'), await replicas.start('b')];
    const limits = { requests_per_minute: 1, tokens_per_minute: RESERVED, concurrency: 1 };
    const key = await replicas.key({ ...limits, token_budget: { tokens: RESERVED + 10, period: 'day' } });
    const undone = await a.admit(key, SIZE);
    undone.undo();
    undone.undo();
    undone.release();
    const admission = await b.admit(key, SIZE);
    expect(admission.headers['x-ratelimit-remaining-requests']).toBe('0');
    admission.settle(usage(30), replicas.clock.wall_ms());
    admission.recorded();
    admission.release();
    expect(await a.left(key)).toMatchObject({
      requests: { limit: 1, remaining: 0 },
      tokens: { limit: RESERVED },
      concurrency: { limit: 1 },
    });
    await replicas.pass(1000);
    expect(await a.left(key)).toMatchObject({
      tokens: { remaining: 71 },
      concurrency: { in_use: 0 },
      budget: { used: 30, reserved: 0 },
    });
  });

  test('a budget begins anew with its period, whatever is held of the old one', async () => {
    const replicas = new Replicas();
    const limits = await replicas.start('a');
    const key = await replicas.key({ token_budget: { tokens: 3 * RESERVED, period: 'day' } });
    const under_way = [
      await limits.admit(key, SIZE),
      await limits.admit(key, SIZE),
      await limits.admit(key, SIZE),
    ];
    expect(await codeOfCall(() => limits.admit(key, SIZE))).toBe('rate_limited');
    await replicas.settle();
    replicas.clock.advance(24 * HOUR_MS);
    const next = await Promise.all([1, 2, 3].map(() => codeOfCall(() => limits.admit(key, SIZE))));
    expect(next).toEqual(['admitted', 'admitted', 'admitted']);
    for (const admission of under_way) {
      admission.settle(usage(50), replicas.clock.wall_ms() - HOUR_MS);
      admission.recorded();
    }
    await replicas.pass(1000);
    expect((await limits.left(key)).budget).toMatchObject({ used: 0, reserved: 3 * RESERVED });
    const { draws } = replicas;
    await replicas.pass(2000);
    expect(replicas.draws).toBe(draws);
  });

  test('a budget: what comes while the first draw of a period is under way is admitted on both only as far as it fits', async () => {
    for (const start of ['of the first period', 'of the next']) {
      const replicas = new Replicas();
      const [a, b] = [await replicas.start('a'), await replicas.start('b')];
      const key = await replicas.key({ token_budget: { tokens: 3 * RESERVED - 1, period: 'day' } });
      if (start === 'of the next') {
        await a.admit(key, SIZE);
        replicas.clock.advance(24 * HOUR_MS);
      }
      const answers: (() => void)[] = [];
      replicas.reach = () => new Promise((resolve) => answers.push(resolve));
      const all = [codeOfCall(() => a.admit(key, SIZE))];
      await replicas.settle();
      expect(answers).toHaveLength(1);
      for (let n = 0; n < 3; n++) all.push(codeOfCall(() => a.admit(key, SIZE)));
      for (let n = 0; n < 4; n++) {
        answers.shift()?.();
        await replicas.settle();
      }
      replicas.reach = undefined;
      for (const answer of answers) answer();
      for (let n = 0; n < 4; n++) all.push(codeOfCall(() => b.admit(key, SIZE)));
      await replicas.pass(2500);
      const codes = await Promise.all(all);
      expect(codes.filter((code) => code === 'admitted')).toHaveLength(2);
      expect(replicas.drawn_twice).toEqual([]);
    }
  });

  test('what was drawn ahead in one period is not spent in the next', async () => {
    const replicas = new Replicas();
    const limits = await replicas.start('a');
    const key = await replicas.key({ token_budget: { tokens: 100 * RESERVED, period: 'day' } });
    for (let n = 0; n < 5; n++) {
      await limits.admit(key, SIZE);
      await replicas.settle();
    }
    expect(replicas.held()).toBeGreaterThanOrEqual(6 * RESERVED);
    replicas.clock.advance(24 * HOUR_MS);
    expect(limits.admit(key, SIZE)).toBeInstanceOf(Promise);
  });

  test('a clean stop gives back what is free, and tells what was spent', async () => {
    const replicas = new Replicas();
    const limits = await replicas.start('a');
    const key = await replicas.key({ requests_per_minute: 100, concurrency: 10 });
    for (let n = 0; n < 5; n++) {
      await limits.admit(key, SIZE);
      await replicas.settle();
    }
    expect(replicas.held()).toBeGreaterThan(5);
    await limits.close(replicas.clock.now_ms() + 1000);
    const rows = [...replicas.database.tables.allowances.values()];
    const requests = rows.find(({ kind }) => kind === 'requests')!;
    expect([requests.used, requests.shares]).toEqual([5, {}]);
    expect(rows.find(({ kind }) => kind === 'concurrency')?.shares).toEqual({
      a: { held: 5, busy: 5, answered: 0 },
    });
    await replicas.pass(2000);
    expect(replicas.clock.pending).toBe(0);
  });
});
