import { describe, expect, test } from 'vitest';
import { aJob, aSettlement, newId, T0 } from './rows.ts';
import type { Subject } from './store.suite.ts';

const DAY_MS = 86_400_000;

export function attachedSuite(subject: Subject): void {
  const usageOf = async (key: string) => (await subject.store.listUsage({ key }, { limit: 500 })).rows;

  describe('attached jobs', () => {
    test('a settlement brings job, attempts and usage, and all of it comes back', async () => {
      const key = newId('key');
      const settlement = aSettlement({ key }, { prompt_tokens: 2 ** 50, first_byte_ms: null });
      await subject.store.settle([settlement]);
      expect(await subject.store.findJob(settlement.job.id)).toEqual({
        ...settlement.job,
        attempts: settlement.attempts,
      });
      expect(await usageOf(key)).toEqual([settlement.usage]);
    });

    test('a settlement sent again changes nothing, whatever it says now', async () => {
      const batch = Array.from({ length: 40 }, () => aSettlement());
      await subject.store.settle(batch);
      const before = await subject.beneath.contents();
      await subject.store.settle(batch);
      await subject.store.settle(
        batch.map((one) => ({ ...one, job: { ...one.job, state: 'failed' as const } })),
      );
      const late = batch[0]!;
      await subject.store.settle([{ ...late, attempts: [{ ...late.attempts[0]!, attempt: 2 }] }]);
      expect(await subject.beneath.contents()).toEqual(before);
    });

    test('the same job twice in one batch is settled once, by the first', async () => {
      const settlement = aSettlement();
      const other = { ...settlement, job: { ...settlement.job, state: 'failed' as const } };
      await subject.store.settle([settlement, other, aSettlement()]);
      expect((await subject.store.findJob(settlement.job.id))?.state).toBe('succeeded');
    });

    test('many batches that share jobs settle each once', async () => {
      const key = newId('key');
      const all = Array.from({ length: 50 }, () => aSettlement({ key }));
      await Promise.all(
        [all, [...all].reverse(), all.slice(10, 30)].map((batch) => subject.store.settle(batch)),
      );
      expect(await usageOf(key)).toHaveLength(50);
    });

    test('no text from outside can fail a record: NUL and half characters are replaced', async () => {
      const settlement = aSettlement({ request_id: 'a\0b\ud800c', error_message: 'tail \udfff' });
      await subject.store.settle([settlement]);
      expect(await subject.store.findJob(settlement.job.id)).toMatchObject({
        request_id: 'a\ufffdb\ufffdc',
        error_message: 'tail \ufffd',
      });
      const honest = aSettlement({ request_id: 'back\\u0000slash', error_message: '\u{1f600}' });
      await subject.store.settle([honest]);
      expect(await subject.store.findJob(honest.job.id)).toMatchObject({
        request_id: 'back\\u0000slash',
        error_message: '\u{1f600}',
      });
    });

    test('an open record is completed by its settlement; recorded later than that it changes nothing', async () => {
      const job = aJob();
      await subject.store.recordOpen([job, aJob()]);
      expect(await subject.store.findJob(job.id)).toEqual({ ...job, attempts: [] });
      const settlement = aSettlement(job);
      await subject.store.settle([settlement]);
      const settled = await subject.store.findJob(job.id);
      expect(settled).toMatchObject({ state: 'succeeded', finished_at: settlement.job.finished_at });
      await subject.store.recordOpen([job]);
      expect(await subject.store.findJob(job.id)).toEqual(settled);
    });

    test('open records of a dead replica are ended, of that one only; if it lives after all, it has the last word', async () => {
      const [mine, other] = [aJob({ replica: 'rep_dead' }), aJob({ replica: 'rep_alive' })];
      await subject.store.recordOpen([mine, other]);
      expect(await subject.store.endOrphans('rep_dead', T0 + 9)).toBe(1);
      expect(await subject.store.endOrphans('rep_dead', T0 + 10)).toBe(0);
      expect(await subject.store.findJob(mine.id)).toMatchObject({
        state: 'failed',
        error_code: 'unavailable',
        finished_at: T0 + 9,
      });
      expect(await subject.store.findJob(other.id)).toMatchObject({ state: 'queued' });
      await subject.store.settle([aSettlement(mine)]);
      expect(await subject.store.findJob(mine.id)).toMatchObject({ state: 'succeeded', error_code: null });
      await subject.store.settle([aSettlement({ ...mine, state: 'failed' })]);
      expect(await subject.store.findJob(mine.id)).toMatchObject({ state: 'succeeded' });
    });

    test('a job that nobody knows is undefined', async () => {
      expect(await subject.store.findJob('job_none')).toBeUndefined();
    });
  });

  describe('listings', () => {
    test('jobs come newest first, page by page, by key, model and state', async () => {
      const key = newId('key');
      const jobs = Array.from({ length: 25 }, (_, n) =>
        aSettlement({
          key,
          created_at: T0 + n,
          model: n % 2 === 0 ? 'even' : 'odd',
          state: n % 5 === 0 ? 'failed' : 'succeeded',
        }),
      );
      await subject.store.settle(jobs);
      const newestFirst = jobs.map(({ job }) => job.id).reverse();
      const seen: string[] = [];
      for (let after: string | null | undefined; after !== null; ) {
        const page = await subject.store.listJobs({ key }, { limit: 10, ...(after ? { after } : {}) });
        seen.push(...page.rows.map(({ id }) => id));
        after = page.next_after;
      }
      expect(seen).toEqual(newestFirst);
      const count = async (filter: object) =>
        (await subject.store.listJobs({ key, ...filter }, { limit: 100 })).rows.length;
      expect(await count({ model: 'even' })).toBe(13);
      expect(await count({ state: 'failed' })).toBe(5);
      expect(await count({ state: 'succeeded', model: 'odd' })).toBe(10);
      expect(await count({ state: 'queued' })).toBe(0);
    });

    test('usage comes newest first, page by page, by key, model, node and time', async () => {
      const key = newId('key');
      const rows = Array.from({ length: 12 }, (_, n) =>
        aSettlement(
          { key, created_at: T0 + n },
          { node: n % 3 === 0 ? null : `node_${n % 3}`, created_at: T0 + n },
        ),
      );
      await subject.store.settle(rows);
      const first = await subject.store.listUsage({ key }, { limit: 8 });
      const second = await subject.store.listUsage({ key }, { limit: 8, after: first.next_after! });
      const seen = [...first.rows, ...second.rows].map(({ job }) => job);
      expect(seen).toEqual(rows.map(({ job }) => job.id).reverse());
      expect(second.next_after).toBeNull();
      const count = async (filter: object) =>
        (await subject.store.listUsage({ key, ...filter }, { limit: 100 })).rows.length;
      expect(await count({ node: 'node_1' })).toBe(4);
      expect(await count({ since: T0 + 3, until: T0 + 6 })).toBe(3);
      expect(await count({ model: 'nothing' })).toBe(0);
    });

    test('usage is summed by model, key, node and day, beyond 32 bits and apart from what was only estimated', async () => {
      const key = newId('key');
      await subject.store.settle([
        aSettlement({ key, model: 'a' }, { prompt_tokens: 2 ** 40, estimated: true, node: null }),
        aSettlement({ key, model: 'a' }, { prompt_tokens: 2 ** 40, created_at: T0 + DAY_MS }),
        aSettlement({ key, model: 'b', state: 'failed' }, { prompt_tokens: 1 }),
        aSettlement({ key, model: 'b', state: 'cancelled' }, { prompt_tokens: 1 }),
      ]);
      expect(await subject.store.summarizeUsage({ key }, 'model')).toEqual([
        { group: 'a', requests: 2, failed: 0, prompt_tokens: 2 ** 41, completion_tokens: 600, estimated: 1 },
        { group: 'b', requests: 2, failed: 1, prompt_tokens: 2, completion_tokens: 600, estimated: 0 },
      ]);
      const groups = async (by: 'key' | 'node' | 'day') =>
        (await subject.store.summarizeUsage({ key }, by)).map(({ group, requests }) => [group, requests]);
      expect(await groups('key')).toEqual([[key, 4]]);
      expect(await groups('node')).toEqual([
        ['', 1],
        ['node_a', 3],
      ]);
      expect(await groups('day')).toEqual([
        ['2026-01-01', 3],
        ['2026-01-02', 1],
      ]);
    });
  });

  describe('what keys have spent', () => {
    const starts = { day: T0, week: T0 - 3 * DAY_MS, month: T0, total: 0 };
    const spentBy = async (key: string) =>
      (await subject.store.loadSpending(starts)).find((row) => row.key === key);

    test('is the sum of their usage rows in each period, beyond 32 bits, whatever their outcome', async () => {
      const key = newId('key');
      await subject.store.settle([
        aSettlement({ key }, { created_at: T0, prompt_tokens: 2 ** 40 }),
        aSettlement({ key, state: 'cancelled' }, { created_at: T0 + 1, estimated: true }),
        aSettlement({ key }, { created_at: T0 - 1 }),
        aSettlement({ key }, { created_at: T0 - 4 * DAY_MS }),
      ]);
      const day = 2 ** 40 + 300 + 420;
      expect(await spentBy(key)).toEqual({ key, day, week: day + 420, month: day, total: day + 840 });
      expect(await spentBy('key_none')).toBeUndefined();
    });

    test('and what was used ends at the last integer, where rows of before counted without a bound', async () => {
      const key = newId('key');
      const most = Number.MAX_SAFE_INTEGER;
      const counts = { prompt_tokens: most, completion_tokens: most };
      await subject.store.settle([aSettlement({ key }, counts), aSettlement({ key }, counts)]);
      expect(await spentBy(key)).toMatchObject({ day: most, total: most });
      expect(await subject.store.summarizeUsage({ key }, 'key')).toMatchObject([counts]);
    });

    test('outlives its rows, of days that a period may hold day by day', async () => {
      const key = newId('key');
      // Older than what other tests leave, so that the sweep takes these rows and no others.
      const old = T0 - 900 * DAY_MS;
      await subject.store.settle([
        aSettlement({ key, created_at: old }, { created_at: old }),
        aSettlement({ key, created_at: old }, { created_at: old + 5 }),
        aSettlement({ key, created_at: old }, { created_at: old + DAY_MS }),
      ]);
      const sweep = (at: number) =>
        subject.store.sweep({ jobs_ms: 0, usage_ms: 0, audit_ms: 0, batch: 1000 }, at);
      expect(await sweep(old + 2 * DAY_MS)).toMatchObject({ usage: 3 });
      const since = { day: old + DAY_MS, week: old, month: old, total: 0 };
      const spent = async () => (await subject.store.loadSpending(since)).find((row) => row.key === key);
      expect(await spent()).toEqual({ key, day: 420, week: 1260, month: 1260, total: 1260 });
      await sweep(old + 60 * DAY_MS);
      await sweep(old + 60 * DAY_MS);
      expect(await spent()).toEqual({ key, day: 0, week: 0, month: 0, total: 1260 });
      expect(await subject.beneath.sweptUsage(key)).toEqual([{ day: 0, tokens: 1260 }]);
    });
  });

  describe('upkeep', () => {
    test('what has outlived its time goes, a bounded number a call; what is open or young stays', async () => {
      const old = T0 - 400 * DAY_MS;
      const finished = Array.from({ length: 5 }, (_, n) => aSettlement({ created_at: old + n }));
      const open = aJob({ created_at: old });
      const young = aSettlement({ created_at: T0 });
      await subject.store.settle([...finished, young]);
      await subject.store.recordOpen([open]);
      const limits = { jobs_ms: 30 * DAY_MS, usage_ms: 90 * DAY_MS, audit_ms: 0, batch: 3 };
      const at = T0 - 300 * DAY_MS;
      expect(await subject.store.sweep(limits, at)).toMatchObject({ jobs: 3, usage: 3 });
      expect(await subject.store.sweep(limits, at)).toMatchObject({ jobs: 2, usage: 2 });
      expect(await subject.store.sweep(limits, at)).toMatchObject({ jobs: 0, usage: 0 });
      expect(await subject.store.findJob(finished[0]!.job.id)).toBeUndefined();
      expect(await subject.store.findJob(open.id)).toBeDefined();
      expect(await subject.store.findJob(young.job.id)).toBeDefined();
      expect(await subject.beneath.attemptsOf(finished[0]!.job.id)).toBe(0);
    });
  });
}
