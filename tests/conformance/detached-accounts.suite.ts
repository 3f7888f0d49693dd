import {
  type ClaimedJob,
  type KeyRecord,
  type Reservation,
  type Store,
  type UsageWord,
  timings,
} from '@flotilla/core';
import { FlotillaError } from '@flotilla/protocol';
import { describe, expect, onTestFinished, test } from 'vitest';
import { principalOf } from '../../packages/control/src/accounts/keys.ts';
import { createLimits } from '../../packages/control/src/accounts/limits.ts';
import { createBodyMemory } from '../../packages/control/src/body-memory.ts';
import { systemClock as clock, systemRandom as random } from '../../packages/control/src/clock.ts';
import { startDetached } from '../../packages/control/src/detached/detached.ts';
import { createReservations } from '../../packages/control/src/detached/reservations.ts';
import { createDispatcher } from '../../packages/control/src/dispatch/dispatcher.ts';
import { createRoster } from '../../packages/control/src/fleet/roster.ts';
import { NO_TRACES } from '../../packages/control/src/telemetry/traces.ts';
import { quiet } from '../support/store.ts';
import { until } from '../support/until.ts';
import { aRequeue, claim, fenceOf } from './detached-rows.ts';
import { aKey, newId } from './rows.ts';
import type { Subject } from './store.suite.ts';

/** What keys are told of their detached jobs' cost, when the store does as it was asked and its answer is lost. */
export function detachedAccountsSuite(subject: Subject): void {
  type Losing = 'acceptJobs' | 'expireJobs' | 'cancelJob' | 'correctUsage';
  const settings = {
    queue_timeout_ms: 60_000,
    run_timeout_ms: 60_000,
    first_byte_timeout_ms: 60_000,
    idle_timeout_ms: 60_000,
    queue_bound: 10,
    result_limit_bytes: 1000,
    body_limit_bytes: 1000,
  };

  /**
   * A control plane without nodes, whose store loses the first answer of this operation that says anything.
   * @param meanwhile the answer is not lost: it waits for this, and is lost each time where this fails
   */
  function running(
    losing: Losing | null,
    key: KeyRecord,
    reservations: Reservation[] = [],
    meanwhile?: () => Promise<unknown>,
    lease_ttl_ms = 15_000,
  ) {
    let lost = losing === null;
    const again = (error: Error) => {
      lost = false;
      throw error;
    };
    const store: Store = { ...subject.store };
    if (losing !== null) {
      const operation = subject.store[losing] as (...args: never[]) => Promise<unknown>;
      store[losing] = (async (...args: never[]) => {
        const answer = await operation(...args);
        if (lost || (Array.isArray(answer) && answer.length === 0)) return answer;
        lost = true;
        if (meanwhile !== undefined) return meanwhile().then(() => answer, again);
        throw new FlotillaError('unavailable', 'The answer was lost.');
      }) as never;
    }
    const limits = createLimits(clock);
    const nothing = () => undefined;
    const dispatcher = createDispatcher({
      clock,
      random,
      log: quiet,
      replica: 'rep_a',
      places: { tiers: () => [], servedBy: () => [], known: () => true },
      settings,
      metrics: { attemptEnded: nothing, queueWaited: nothing },
      record: nothing,
    });
    const ended: string[] = [];
    const detached = startDetached({
      shared: null,
      mirror: null,
      clock,
      random,
      log: quiet,
      store,
      replica: 'rep_a',
      roster: createRoster(clock, timings(5000)),
      dispatcher,
      lease_ttl_ms,
      predecessor_renews_ms: 0,
      memory: createBodyMemory(1_000_000),
      settings,
      limits,
      keys: { find: (id) => (id === key.id ? key : undefined) },
      reservations,
      traces: NO_TRACES,
      metrics: {
        detachedAccepted: nothing,
        detachedEnded: (outcome) => void ended.push(outcome),
        storeFlushed: nothing,
      },
    });
    onTestFinished(() => detached.close(soon()));
    const size = { prompt_tokens: 10, answer_tokens: 20 };
    return {
      detached,
      ended,
      told: (word: UsageWord) => dispatcher.stores.told(word),
      budget: () => limits.left(key).budget!,
      wasLost: () => lost,
      submit: async (queue_timeout_ms: number): Promise<string> => {
        const submission = {
          principal: principalOf(key),
          size,
          model: newId('boot'),
          operation: 'chat' as const,
          request_id: newId('request'),
          traceparent: null,
          request: '{"messages":[]}',
          priority: 0,
          metadata: {},
          queue_timeout_ms,
          run_timeout_ms: 60_000,
          retention_ms: 60_000,
          idempotency: null,
        };
        const acceptance = await detached.accept(submission, limits.admit(key, size));
        return (acceptance as { accepted: string }).accepted;
      },
    };
  }

  /** Some node has it, which the control plane under test does not know of. */
  async function begun(id: string): Promise<ClaimedJob> {
    const { lane } = (await subject.store.findDetached(id))!;
    const [claimed] = await claim(subject.store, lane, 1);
    await subject.store.startJobs([fenceOf(claimed!)]);
    return claimed!;
  }

  const soon = () => clock.now_ms() + 1000;
  const budgeted = () => aKey({ token_budget: { tokens: 1000, period: 'total' } });
  const word = { attempt: 1, node: 'node_a', prompt_tokens: 11, completion_tokens: 22, cached_tokens: 0 };

  describe('what detached jobs cost, when an answer of the store is lost', () => {
    test('a job that has waited too long reserves nothing any more', async () => {
      const { submit, budget, wasLost, ended } = running('expireJobs', budgeted());
      const other = await submit(60_000);
      const { reserved } = budget();
      await submit(20);
      expect(budget().reserved).toBeGreaterThan(reserved);
      await until('its end is learned', () => budget().reserved === reserved);
      expect(wasLost()).toBe(true);
      expect(ended).toContain('queue_timeout');
      expect(await subject.store.findDetached(other)).toMatchObject({ state: 'queued' });
    });

    test('a job that was cancelled reserves nothing any more, whoever asks', async () => {
      const { submit, budget, detached, ended } = running('cancelJob', budgeted());
      const id = await submit(60_000);
      await expect(detached.cancel(id, 'No.')).rejects.toThrow('The answer was lost.');
      expect(budget().reserved).toBeGreaterThan(0);
      await until('its end is learned', () => budget().reserved === 0);
      expect(await detached.cancel(id, 'No.')).toEqual({ refused: 'ended' });
      expect(ended).toEqual(['cancelled']);
    });

    test('a node’s word of a job whose end was not heard of counts once', async () => {
      const { submit, budget, detached, told } = running('cancelJob', budgeted());
      const id = await submit(60_000);
      await begun(id);
      await expect(detached.cancel(id, 'No.')).rejects.toThrow('The answer was lost.');
      told({ job: id, ...word, estimated: false });
      await until('it is counted', () => budget().used > 0);
      expect(await detached.cancel(id, 'No.')).toEqual({ refused: 'ended' });
      expect(budget()).toMatchObject({ used: 33, reserved: 0 });
    });

    test('a node’s late word is counted once, however often it is told', async () => {
      const { submit, budget, detached, told, wasLost } = running('correctUsage', budgeted());
      const [first, id, last] = [await submit(60_000), await submit(60_000), await submit(60_000)];
      for (const job of [first, id, last]) {
        await begun(job);
        await detached.cancel(job, 'No.');
      }
      // By the bytes of each request.
      expect(budget()).toMatchObject({ used: 12, reserved: 0 });
      told({ job: first, ...word, estimated: false });
      // These wait for the first, and go together.
      told({ job: id, ...word, estimated: false });
      told({ job: id, ...word, estimated: false });
      await until('they are counted', () => budget().used >= 70);
      expect(wasLost()).toBe(true);
      expect(budget().used).toBe(70);
      told({ job: first, ...word, estimated: false });
      told({ job: id, ...word, prompt_tokens: 500, estimated: false });
      told({ job: last, ...word, estimated: false });
      await until('what was told after them is counted', () => budget().used >= 99);
      expect(budget().used).toBe(99);
    });
  });

  describe('what is looked for together', () => {
    /** The accounts of one key, whose first look at the store waits for `goOn`; the first correction's answer is lost. */
    function accounts(key: KeyRecord, restored: Reservation[] = []) {
      const limits = createLimits(clock);
      let goOn!: () => void;
      const waiting = new Promise<void>((resolve) => (goOn = resolve));
      let lost = false;
      const reservations = createReservations({
        clock,
        log: quiet,
        store: {
          ...subject.store,
          findUsage: (jobs) => waiting.then(() => subject.store.findUsage(jobs)),
          async correctUsage(batch) {
            await subject.store.correctUsage(batch);
            if (lost || batch.length === 0) return;
            lost = true;
            throw new FlotillaError('unavailable', 'The answer was lost.');
          },
        },
        limits,
        restored,
        keyOf: () => key,
        flushed: () => undefined,
        works: () => false,
        ended: (usage) => void reservations.settle(usage),
      });
      onTestFinished(() => reservations.close(soon()));
      // Something is looked for, and what comes next goes together.
      void reservations.learn(['job_x']);
      return { reservations, goOn, budget: () => limits.left(key).budget! };
    }

    async function cancelled(key: KeyRecord, attempts: number): Promise<string> {
      const id = await running(null, key).submit(60_000);
      for (let lost = 1; lost < attempts; lost++)
        await subject.store.requeueJobs([aRequeue(await begun(id))]);
      await begun(id);
      await subject.store.cancelJob(id, 'No.');
      return id;
    }

    test('a word of an older attempt does not take the place of the right one', async () => {
      const key = budgeted();
      const { reservations, goOn, budget } = accounts(key);
      const id = await cancelled(key, 2);
      reservations.settle((await subject.store.findUsage([id]))[0]!);
      expect(budget().used).toBe(4);
      reservations.told({ job: id, ...word, prompt_tokens: 500, estimated: false });
      reservations.told({ job: id, ...word, attempt: 2, estimated: false });
      goOn();
      await until('they are looked at', () => reservations.waiting === 0);
      expect(budget().used).toBe(33);
      expect(await subject.store.findUsage([id])).toMatchObject([{ prompt_tokens: 11, estimated: false }]);
    });

    test('an end that is looked for before its node’s word counts once with it', async () => {
      const key = budgeted();
      const job = await cancelled(key, 1);
      const restored = { job, key: key.id, tokens: 30, created_at: clock.wall_ms() };
      const { reservations, goOn, budget } = accounts(key, [restored]);
      void reservations.learn([job]);
      reservations.told({ job, ...word, estimated: false });
      expect(budget()).toMatchObject({ used: 0, reserved: 30 });
      goOn();
      await until('they are looked at', () => reservations.waiting === 0);
      expect(budget()).toMatchObject({ used: 33, reserved: 0 });
    });
  });

  test('who stops waits for a store that is away until the time that it was given, and no longer', async () => {
    const away = () => Promise.reject(new FlotillaError('unavailable', 'It is away.'));
    const { detached, submit } = running('acceptJobs', budgeted(), [], away);
    const refused = submit(60_000).catch((error: Error) => error.message);
    const latest_ms = soon();
    await detached.close(latest_ms);
    expect(clock.now_ms()).toBeGreaterThanOrEqual(latest_ms);
    expect(clock.now_ms()).toBeLessThan(latest_ms + 8000);
    expect(await refused).toContain('not committed in time');
  });

  test('a job whose end is heard of before its acceptance reserves nothing', async () => {
    const key = budgeted();
    let id = '';
    const ending = async () => {
      [id] = (await subject.store.loadReservations(100_000)).flatMap((one) =>
        one.key === key.id ? [one.job] : [],
      ) as [string];
      await detached.cancel(id, 'No.');
    };
    const { submit, budget, detached, ended } = running('acceptJobs', key, [], ending);
    expect(await submit(60_000)).toBe(id);
    expect(ended).toEqual(['cancelled']);
    expect(budget()).toMatchObject({ used: 0, reserved: 0 });
  });

  test('a word that overtakes the answer to the end counts once', async () => {
    let id = '';
    const overtaking = async () => {
      told({ job: id, ...word, estimated: false });
      await until(
        'it is in the row',
        async () => (await subject.store.findUsage([id]))[0]?.estimated === false,
      );
      await until('it is counted', () => budget().used > 0);
    };
    const { submit, budget, detached, told, ended } = running('cancelJob', budgeted(), [], overtaking);
    id = await submit(60_000);
    await begun(id);
    await detached.cancel(id, 'No.');
    expect(budget()).toMatchObject({ used: 33, reserved: 0 });
    expect(ended).toEqual(['cancelled']);
  });

  test('what open jobs have reserved is reserved again by the next process, and settled once', async () => {
    const key = budgeted();
    const before = running(null, key);
    const [id, other] = [await before.submit(60_000), await before.submit(60_000)];
    const { reserved } = before.budget();
    await before.detached.close(soon());
    const mine = (await subject.store.loadReservations(100_000)).filter((one) => one.key === key.id);
    const after = running(null, key, mine);
    expect(after.budget()).toMatchObject({ used: 0, reserved });
    await begun(id);
    for (const job of [id, other, id]) await after.detached.cancel(job, 'No.');
    expect(after.budget()).toMatchObject({ used: 4, reserved: 0 });
  });

  test('a job that was lost with its node once too often costs an estimate, and then what its node says', async () => {
    const key = budgeted();
    const before = running(null, key);
    const id = await before.submit(60_000);
    for (let lost = 0; lost < 2; lost++) await subject.store.requeueJobs([aRequeue(await begun(id))]);
    await begun(id);
    await before.detached.close(soon());
    const mine = (await subject.store.loadReservations(100_000)).filter((one) => one.key === key.id);
    const after = running(null, key, mine, undefined, 20);
    await until('it is given up', () => after.ended.includes('attempts_exhausted'));
    expect(after.budget()).toMatchObject({ used: 4, reserved: 0 });
    after.told({ job: id, ...word, attempt: 3, estimated: false });
    await until('the word counts', () => after.budget().used === 33);
  });
}
