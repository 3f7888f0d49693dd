import { type Draw, type Drawn, type KeyRecord, type Store, periodStart } from '@flotilla/core';
import { describe, expect, test } from 'vitest';
import type { Beneath } from './beneath.ts';
import { aDetachedJob } from './detached-rows.ts';
import { aKey, aSettlement, newId } from './rows.ts';

/** Limits that replicas share, as the store keeps them. What a draw decides is in `core/src/draw.test.ts`. */
export function sharedLimitsSuite(subject: { store: Store; beneath: Beneath }): void {
  const replica = async () => {
    const id = newId('replica');
    await subject.store.enterReplica(id, true);
    return id;
  };
  const key = async (limits: Partial<KeyRecord>) => {
    const made = aKey({ requests_per_minute: null, ...limits });
    await subject.store.insertKey(made);
    return made.id;
  };
  const ask = (of: string, kind: Draw['kind'], more: Partial<Draw> = {}): Draw => {
    const nothing = { held: 0, busy: 0, spent: 0, size: null, start: 0, ahead: 0, recalled: 0, answers: 0 };
    const need = more.need ?? more.first ?? 0;
    return { key: of, kind, ...nothing, first: need, need, doubt: false, ...more };
  };
  const draw = async (by: string, ...draws: Draw[]): Promise<Drawn[]> =>
    (await subject.store.drawLimits(by, draws))!;
  const day = () => periodStart('day', Date.now());

  describe('limits that replicas share', () => {
    test('one draw takes of several limits of several keys, and answers in their order', async () => {
      const a = await replica();
      const one = await key({ requests_per_minute: 60, tokens_per_minute: 1000 });
      const two = await key({ concurrency: 2, token_budget: { tokens: 2 ** 45, period: 'month' } });
      const drawn = await draw(
        a,
        ask(two, 'budget', { need: 2 ** 44 }),
        ask(one, 'requests', { need: 10 }),
        ask(two, 'concurrency', { need: 3 }),
        ask(one, 'tokens', { need: 500 }),
        ask('key_none', 'requests', { need: 1 }),
      );
      expect(drawn.map(({ key: of, kind, granted, size }) => [of, kind, granted, size])).toEqual([
        [two, 'budget', 2 ** 44, 2 ** 45],
        [one, 'requests', 10, 60],
        [two, 'concurrency', 0, 2],
        [one, 'tokens', 500, 1000],
        ['key_none', 'requests', 0, null],
      ]);
      expect(await subject.beneath.sharesOf(one)).toEqual({
        requests: { [a]: { held: 10, busy: 0, answered: 0 } },
        tokens: { [a]: { held: 500, busy: 0, answered: 0 } },
      });
      await subject.store.endReplica(a);
    });

    test('twenty draws by four replicas at once give no more than there is', async () => {
      const replicas = await Promise.all([1, 2, 3, 4].map(replica));
      const of = await key({ concurrency: 7, requests_per_minute: 60 });
      const held = new Map(replicas.map((id) => [id, 0]));
      const granted = await Promise.all(
        replicas.map(async (id) => {
          for (let n = 0; n < 5; n++) {
            const [drawn] = await draw(
              id,
              ask(of, 'concurrency', { held: held.get(id)!, busy: held.get(id)!, need: 1 }),
              ask(of, 'requests', { need: 1 }),
            );
            held.set(id, held.get(id)! + drawn!.granted);
          }
          return held.get(id)!;
        }),
      );
      expect(granted.reduce((sum, one) => sum + one)).toBe(7);
      for (const id of replicas) await subject.store.endReplica(id);
    });

    test('replicas that draw of keys that are new to some of them never wait for each other in a circle', async () => {
      const replicas = await Promise.all([1, 2, 3, 4, 5, 6].map(replica));
      for (let round = 1; round <= 5; round++) {
        const keys = await Promise.all(Array.from({ length: 12 }, () => key({ requests_per_minute: 60 })));
        await Promise.all(
          replicas.map(async (id, nth) => {
            for (let turn = 1; turn <= 3; turn++) {
              const some = keys.filter((_, n) => ((n + 1) * (nth * 31 + turn * 17 + round * 5)) % 13 < 5);
              const drawn = await draw(id, ...some.map((of) => ask(of, 'requests', { need: 1 })));
              expect(drawn.map(({ granted }) => granted)).toEqual(some.map(() => 1));
            }
          }),
        );
      }
      for (const id of replicas) await subject.store.endReplica(id);
    });

    test('what was used of a rate comes back by the store’s own clock', async () => {
      const a = await replica();
      const of = await key({ requests_per_minute: 60_000_000 });
      const [before] = await draw(a, ask(of, 'requests', { need: 60_000_000 }));
      expect(before!.granted).toBe(60_000_000);
      const [spent] = await draw(
        a,
        ask(of, 'requests', { size: 60_000_000, spent: 60_000_000, need: 60_000_000 }),
      );
      expect(spent).toMatchObject({ granted: 0, verdict: 'short' });
      await subject.beneath.clockMoves();
      const [after] = await draw(a, ask(of, 'requests', { need: 5000 }));
      expect(after!.granted).toBe(5000);
      await subject.store.endReplica(a);
    });

    test('what a replica held that has ended is there for the others', async () => {
      const [a, b] = [await replica(), await replica()];
      const of = await key({
        concurrency: 3,
        requests_per_minute: 60,
        token_budget: { tokens: 100, period: 'day' },
      });
      await draw(a, ask(of, 'concurrency', { need: 3 }), ask(of, 'requests', { need: 60 }));
      await draw(a, ask(of, 'budget', { need: 100 }));
      const asking = [
        ask(of, 'concurrency', { need: 3 }),
        ask(of, 'budget', { need: 60 }),
        ask(of, 'requests', { need: 30 }),
      ];
      expect((await draw(b, ...asking)).map(({ granted }) => granted)).toEqual([0, 0, 0]);
      // It has used some of its share, and told nobody.
      await subject.store.settle([
        aSettlement(
          { key: of },
          { key: of, prompt_tokens: 30, completion_tokens: 10, created_at: Date.now() },
        ),
      ]);
      await subject.store.endReplica(a);
      const [places, budget, requests] = await draw(b, ...asking);
      expect([places!.granted, budget!.granted, budget!.used]).toEqual([3, 60, 40]);
      // Of a rate nobody knows what it has used: it comes back with time.
      expect(requests).toMatchObject({ granted: 0, verdict: 'short' });
      await subject.store.endReplica(b);
    });

    test('a replica without a row draws nothing', async () => {
      const of = await key({ concurrency: 3 });
      expect(await subject.store.drawLimits('rep_none', [ask(of, 'concurrency', { need: 1 })])).toBeNull();
      expect(await subject.beneath.sharesOf(of)).toEqual({});
    });

    test('what is spent of a budget is what its usage rows say, those that were swept included', async () => {
      const a = await replica();
      const of = await key({ token_budget: { tokens: 1000, period: 'day' } });
      const usage = (created_at: number, prompt_tokens: number) =>
        aSettlement({ key: of }, { key: of, prompt_tokens, completion_tokens: 0, created_at });
      await subject.store.settle([usage(day() - 1, 500), usage(day(), 30), usage(Date.now(), 4)]);
      const [drawn] = await draw(a, ask(of, 'budget', { need: 1 }));
      expect(drawn).toMatchObject({ used: 34, start: day(), granted: 1, others_busy: 0, pledged: 0 });
      await subject.store.endReplica(a);
    });

    test('open detached jobs whose replica is no more hold what they reserve, until they end', async () => {
      const [a, b] = [await replica(), await replica()];
      const of = await key({ token_budget: { tokens: 100, period: 'day' } });
      const now = Date.now();
      const job = (accepted: string, reserved_tokens: number) =>
        aDetachedJob({ replica: accepted, key: of, reserved_tokens, created_at: now });
      const [theirs, own] = [job(a, 30), job(b, 50)];
      await subject.store.acceptJobs([theirs, own]);
      const [before] = await draw(b, ask(of, 'budget', { held: 50, busy: 50 }));
      expect(before).toMatchObject({ pledged: 0, others_busy: 0 });
      await draw(a, ask(of, 'budget', { start: before!.start, need: 30 }));
      await subject.store.endReplica(a);
      const holding = { start: before!.start, held: 50, busy: 50 };
      const [after] = await draw(b, ask(of, 'budget', { ...holding, need: 21 }));
      expect(after).toMatchObject({ pledged: 30, granted: 0, verdict: 'short' });
      await subject.store.cancelJob(theirs.id, 'enough');
      await subject.store.endReplica(await replica());
      const c = await replica();
      await draw(c, ask(of, 'budget', { need: 1 }));
      await subject.store.endReplica(c);
      const [over] = await draw(b, ask(of, 'budget', { ...holding, need: 21 }));
      expect(over).toMatchObject({ pledged: 0, granted: 21 });
      await subject.store.endReplica(b);
    });

    test('a replica that is alone, and does not tell what it spends, leaves none of it to the next', async () => {
      const a = await replica();
      const of = await key({ token_budget: { tokens: 100, period: 'day' } });
      await draw(a, ask(of, 'budget', { need: 10 }));
      const alone = newId('replica');
      await subject.store.enterReplica(alone, false);
      await subject.store.endReplica(a);
      await subject.store.settle([
        aSettlement(
          { key: of },
          { key: of, prompt_tokens: 70, completion_tokens: 0, created_at: Date.now() },
        ),
      ]);
      const b = await replica();
      const [early] = await draw(b, ask(of, 'budget', { need: 1 }));
      await subject.store.settle([
        aSettlement(
          { key: of },
          { key: of, prompt_tokens: 20, completion_tokens: 0, created_at: Date.now() },
        ),
      ]);
      await subject.store.endReplica(alone);
      const [drawn] = await draw(b, ask(of, 'budget', { start: early!.start, held: 1, need: 1 }));
      expect([early!.used, drawn!.used]).toEqual([70, 90]);
      await subject.store.endReplica(b);
    });

    test('a replica without a bus that is refused beside others takes nothing of what they hold', async () => {
      const a = await replica();
      const of = await key({ concurrency: 3 });
      await draw(a, ask(of, 'concurrency', { need: 2 }));
      const refused = newId('replica');
      await subject.store.enterReplica(refused, false);
      await subject.store.endReplica(refused);
      expect(await subject.beneath.sharesOf(of)).toEqual({
        concurrency: { [a]: { held: 2, busy: 0, answered: 0 } },
      });
      await subject.store.endReplica(a);
    });
  });
}
