import { describe, expect, test } from 'vitest';
import { aDetachedJob, aFinish, aRequeue, claim, fenceOf, leased } from './detached-rows.ts';
import { aSettlement, newId, T0 } from './rows.ts';
import type { Subject } from './store.suite.ts';

export function detachedSuite(subject: Subject): void {
  describe('detached jobs', () => {
    test('an accepted job is there, queued, with its request', async () => {
      const job = aDetachedJob();
      expect(await subject.store.acceptJobs([job])).toEqual([{ accepted: job.id }]);
      expect(await subject.store.findJob(job.id)).toMatchObject({
        state: 'queued',
        attached: false,
        key: 'key_a',
      });
      expect(await subject.store.loadBodies(job.id)).toEqual({
        request: job.request,
        result: null,
        erase_at: null,
      });
      expect(await subject.store.findDetached(job.id)).toMatchObject({
        lane: job.lane,
        metadata: { project: 'x' },
        attempt: 0,
        failures: 0,
        not_before: null,
      });
    });

    test('the same batch again is accepted again and makes nothing', async () => {
      const batch = [aDetachedJob(), aDetachedJob()];
      const first = await subject.store.acceptJobs(batch);
      expect(await subject.store.acceptJobs(batch)).toEqual(first);
    });

    test('an idempotency key with the same body gives the earlier job, with another body a conflict, per API key', async () => {
      const idempotency = { key: newId('request'), body_hash: 'h1' };
      const first = aDetachedJob({ idempotency });
      const same = aDetachedJob({ idempotency });
      const other = aDetachedJob({ idempotency: { ...idempotency, body_hash: 'h2' } });
      const stranger = aDetachedJob({ idempotency, key: 'key_b' });
      const bootstrap = [
        aDetachedJob({ idempotency, key: null }),
        aDetachedJob({ idempotency, key: null }),
      ] as const;
      expect(await subject.store.acceptJobs([first, same, other, stranger])).toEqual([
        { accepted: first.id },
        { existing: first.id },
        { conflict: first.id },
        { accepted: stranger.id },
      ]);
      expect(await subject.store.acceptJobs([...bootstrap])).toEqual([
        { accepted: bootstrap[0].id },
        { existing: bootstrap[0].id },
      ]);
    });

    test('one idempotency key, raced by twenty callers, makes exactly one job', async () => {
      const idempotency = { key: newId('request'), body_hash: 'h' };
      const jobs = Array.from({ length: 20 }, () => aDetachedJob({ idempotency }));
      const answers = (await Promise.all(jobs.map((job) => subject.store.acceptJobs([job])))).flat();
      const accepted = answers.flatMap((answer) => ('accepted' in answer ? [answer.accepted] : []));
      expect(accepted).toHaveLength(1);
      expect(
        answers.filter((answer) => 'existing' in answer && answer.existing === accepted[0]),
      ).toHaveLength(19);
    });

    test('claims take the smallest order keys over all lanes, no more than there are slots', async () => {
      const [x, y] = [newId('boot'), newId('boot')];
      const order = [5, 1, 4, 2, 3];
      const jobs = order.map((order_key) => aDetachedJob({ order_key, lane: order_key % 2 === 0 ? x : y }));
      await subject.store.acceptJobs(jobs);
      const lanes = [x, y].map((lane) => ({ lane, node: 'node_a', epoch: 3, free: 4 }));
      const first = await subject.store.claimJobs({ replica: 'rep_a', lanes, limit: 3 });
      expect(first.map(({ order_key }) => order_key)).toEqual([1, 2, 3]);
      expect(first[0]).toMatchObject({ attempt: 1, node: 'node_a', epoch: 3, request: '{"messages":[]}' });
      const rest = await subject.store.claimJobs({ replica: 'rep_a', lanes, limit: 10 });
      expect(rest.map(({ order_key }) => order_key)).toEqual([4, 5]);
      expect(await subject.store.claimJobs({ replica: 'rep_a', lanes, limit: 10 })).toEqual([]);
    });

    test('one lane for several nodes fills each node’s slots and gives no job twice', async () => {
      const lane = newId('boot');
      await subject.store.acceptJobs(Array.from({ length: 10 }, () => aDetachedJob({ lane })));
      const lanes = [
        { lane, node: 'node_a', epoch: 1, free: 2 },
        { lane, node: 'node_b', epoch: 2, free: 3 },
        { lane, node: 'node_c', epoch: 3, free: 0 },
      ];
      const claimed = await subject.store.claimJobs({ replica: 'rep_a', lanes, limit: 100 });
      expect(claimed.filter(({ node, epoch }) => node === 'node_a' && epoch === 1)).toHaveLength(2);
      expect(claimed.filter(({ node, epoch }) => node === 'node_b' && epoch === 2)).toHaveLength(3);
      expect(new Set(claimed.map(({ id }) => id)).size).toBe(5);
    });

    test('claims that race share the jobs out, each to one', async () => {
      const lane = newId('boot');
      await subject.store.acceptJobs(Array.from({ length: 40 }, () => aDetachedJob({ lane })));
      const racers = Array.from({ length: 8 }, (_, n) => claim(subject.store, lane, 10, `node_${n}`));
      const claimed = (await Promise.all(racers)).flat();
      expect(new Set(claimed.map(({ id }) => id)).size).toBe(claimed.length);
      claimed.push(...(await claim(subject.store, lane, 40)));
      expect(claimed).toHaveLength(40);
    });

    test('a start is accepted once, then a duplicate; under another fence it is stale', async () => {
      const fence = fenceOf(await leased(subject.store));
      const strange = [
        { ...fence, attempt: 2 },
        { ...fence, epoch: 2 },
        { ...fence, node: 'node_b' },
        { ...fence, id: 'job_none' },
      ];
      expect(await subject.store.startJobs([...strange, fence, fence])).toEqual([
        'stale',
        'stale',
        'stale',
        'stale',
        'accepted',
        'duplicate',
      ]);
      expect((await subject.store.findDetached(fence.id))?.started_at).toBeGreaterThan(T0);
    });

    test('a result is accepted once: the same again is a duplicate, another one a conflict, an old attempt stale', async () => {
      const first = await leased(subject.store);
      await subject.store.startJobs([fenceOf(first)]);
      expect(await subject.store.requeueJobs([aRequeue(first)])).toEqual(['accepted']);
      const [second] = await claim(subject.store, first.lane, 1, 'node_b', 9);
      expect(second).toMatchObject({ attempt: 2, failures: 1 });
      const { usage } = aSettlement({ id: first.id, key: first.key });
      const outcomes = await subject.store.finishJobs([
        aFinish(first),
        aFinish(second!, { usage }),
        aFinish(second!, { usage }),
        aFinish(second!, { digest: 'd2' }),
        aFinish(first),
      ]);
      expect(outcomes).toEqual(['stale', 'accepted', 'duplicate', 'conflict', 'stale']);
      const job = await subject.store.findJob(first.id);
      expect(job).toMatchObject({ state: 'succeeded', error_code: null });
      expect(job?.attempts.map(({ attempt, node, outcome }) => [attempt, node, outcome])).toEqual([
        [1, 'node_a', 'node_lost'],
        [2, 'node_b', 'succeeded'],
      ]);
      expect((await subject.store.loadBodies(first.id))?.result).toBe('{"choices":[]}');
      const [used] = await subject.sql.query('select prompt_tokens from usage where job = $1', [first.id]);
      expect(used).toEqual({ prompt_tokens: usage.prompt_tokens });
    });

    test('of twenty results that race, one is accepted', async () => {
      const fence = await leased(subject.store);
      const outcomes = await Promise.all(
        Array.from({ length: 20 }, (_, n) => subject.store.finishJobs([aFinish(fence, { digest: `d${n}` })])),
      );
      expect(outcomes.flat().filter((outcome) => outcome === 'accepted')).toHaveLength(1);
      expect(outcomes.flat().filter((outcome) => outcome === 'conflict')).toHaveLength(19);
    });

    test('a failure that is tried again answers its own replay as a duplicate', async () => {
      const fence = await leased(subject.store);
      const failure = aRequeue(fence, { digest: 'f1', code: 'backend_error' });
      expect(await subject.store.requeueJobs([failure, failure])).toEqual(['accepted', 'duplicate']);
      expect(await subject.store.requeueJobs([{ ...failure, digest: 'f2' }])).toEqual(['conflict']);
      expect(await subject.store.findDetached(fence.id)).toMatchObject({
        state: 'queued',
        failures: 1,
        node: null,
      });
    });

    test('a job in back-off is claimed by nobody until its time is over', async () => {
      const fence = await leased(subject.store);
      await subject.store.requeueJobs([aRequeue(fence, { delay_ms: 30, counts: false })]);
      expect(await claim(subject.store, fence.lane, 1)).toEqual([]);
      await expect.poll(() => subject.store.readyJobs(100)).toContain(fence.lane);
      expect(await claim(subject.store, fence.lane, 1)).toMatchObject([
        { id: fence.id, attempt: 2, failures: 0 },
      ]);
    });

    test('a node that comes back keeps its attempts under its new epoch, and loses those given away', async () => {
      const node = newId('node');
      const [mine, gone] = [await leased(subject.store), await leased(subject.store)];
      await subject.sql.query('update jobs set node = $1 where id in ($2, $3)', [node, mine.id, gone.id]);
      await subject.store.requeueJobs([aRequeue({ ...gone, node })]);
      expect(await subject.store.heldJobs(node)).toMatchObject([{ id: mine.id, state: 'leased', epoch: 1 }]);
      const inventory = [mine, gone].map(({ id, attempt }) => ({ id, attempt }));
      expect(await subject.store.keepJobs(node, 2, 'rep_b', inventory)).toMatchObject([
        { id: mine.id, epoch: 2 },
      ]);
      expect(await subject.store.keepJobs(node, 1, 'rep_c', inventory)).toEqual([]);
      expect(
        await subject.store.finishJobs([aFinish({ ...mine, node }), aFinish({ ...mine, node, epoch: 2 })]),
      ).toEqual(['stale', 'accepted']);
    });

    test('a cancelled job refuses what comes later, and tells whom to stop', async () => {
      const fence = await leased(subject.store);
      await subject.store.startJobs([fenceOf(fence)]);
      expect(await subject.store.cancelJob(fence.id, 'by its owner')).toEqual({
        cancelled: { id: fence.id, state: 'cancelled', error_code: 'cancelled', fence: fenceOf(fence) },
      });
      expect(await subject.store.cancelJob(fence.id, 'again')).toEqual({ refused: 'ended' });
      expect(await subject.store.cancelJob('job_none', 'x')).toEqual({ refused: 'unknown' });
      expect(await subject.store.finishJobs([aFinish(fence)])).toEqual(['stale']);
      expect((await subject.store.findJob(fence.id))?.attempts).toMatchObject([{ outcome: 'cancelled' }]);
    });

    test('a job past its queue or run deadline is timed out once, by the store’s clock, and says which it was', async () => {
      const waiting = aDetachedJob({ queue_timeout_ms: 0 });
      await subject.store.acceptJobs([waiting]);
      const running = await leased(subject.store, { run_timeout_ms: 0 });
      const endless = await leased(subject.store, { queue_timeout_ms: 5, run_timeout_ms: null });
      await subject.store.startJobs([fenceOf(running), fenceOf(endless)]);
      await subject.sql.query('select pg_sleep(0.01)');
      const ended = [...(await subject.store.expireJobs(100)), ...(await subject.store.expireJobs(100))];
      expect(ended).toContainEqual({
        id: waiting.id,
        state: 'timed_out',
        error_code: 'queue_timeout',
        fence: null,
      });
      expect(ended).toContainEqual({
        id: running.id,
        state: 'timed_out',
        error_code: 'run_timeout',
        fence: fenceOf(running),
      });
      expect(new Set(ended.map(({ id }) => id)).size).toBe(ended.length);
      expect(await subject.store.findDetached(endless.id)).toMatchObject({
        state: 'running',
        deadline_at: null,
      });
      expect(await subject.store.finishJobs([aFinish(running)])).toEqual(['stale']);
    });

    test('bodies go when their retention is over, at once if asked, and never before the end', async () => {
      const open = await leased(subject.store, { retention_ms: 0 });
      await subject.store.eraseBodies(1000);
      expect(await subject.store.loadBodies(open.id)).toMatchObject({ request: '{"messages":[]}' });
      await subject.store.finishJobs([aFinish(open)]);
      await expect.poll(() => subject.store.eraseBodies(1000)).toBeGreaterThan(0);
      expect(await subject.store.loadBodies(open.id)).toBeUndefined();
      expect(await subject.store.findJob(open.id)).toMatchObject({ state: 'succeeded' });
      const kept = await leased(subject.store);
      expect([await subject.store.deleteBodies(kept.id), await subject.store.deleteBodies(kept.id)]).toEqual([
        true,
        false,
      ]);
    });

    test('a settlement of attached work cannot touch a detached job', async () => {
      const job = aDetachedJob();
      await subject.store.acceptJobs([job]);
      await subject.store.settle([aSettlement({ id: job.id })]);
      expect(await subject.store.findJob(job.id)).toMatchObject({ state: 'queued', attempts: [] });
    });
  });
}
