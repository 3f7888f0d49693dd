import type { ClaimedJob } from '@flotilla/core';
import { describe, expect, test } from 'vitest';
import { aDetachedJob, aFinish, aRequeue, claim, fenceOf, inventoried, leased } from './detached-rows.ts';
import { aSettlement, newId, T0 } from './rows.ts';
import type { Subject } from './store.suite.ts';

export function detachedSuite(subject: Subject): void {
  describe('detached jobs', () => {
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

    test('a claim takes no more requests than there are bytes for, but the first however large it is', async () => {
      const lane = newId('boot');
      const sizes = [10, 4, 4, 3, 1];
      await subject.store.acceptJobs(
        sizes.map((size, order_key) =>
          aDetachedJob({ lane, order_key, request: 'é'.repeat(size / 2) + 'x'.repeat(size % 2) }),
        ),
      );
      const take = async (bytes_most: number) => {
        const lanes = [{ lane, node: 'node_a', epoch: 1, free: 9 }];
        const claimed = await subject.store.claimJobs({ replica: 'rep_a', lanes, limit: 9, bytes_most });
        return claimed.map(({ request_bytes }) => request_bytes);
      };
      expect(await take(9)).toEqual([10]);
      expect(await take(8)).toEqual([4, 4]);
      expect(await take(0)).toEqual([3]);
      expect(await take(9)).toEqual([1]);
    });

    test('a claim passes over what is before the order key that it begins at', async () => {
      const lane = newId('boot');
      await subject.store.acceptJobs([1, 2, 2, 3].map((order_key) => aDetachedJob({ lane, order_key })));
      const lanes = ['node_a', 'node_b'].map((node) => ({ lane, node, epoch: 1, free: 2 }));
      const from = async (...keys: number[]) => {
        const asked = lanes.map((one, at) => ({
          ...one,
          ...(keys[at] !== undefined && { from_order_key: keys[at] }),
        }));
        const claimed = await subject.store.claimJobs({ replica: 'rep_a', lanes: asked, limit: 9 });
        return claimed.map(({ order_key }) => order_key);
      };
      expect(await from(3, 2)).toEqual([2, 2, 3]);
      expect(await from(2, 2)).toEqual([]);
      expect(await from()).toEqual([1]);
    });

    test('an end that brings the start along says when that was, and moves no start that is there', async () => {
      const [late, early] = [await leased(subject.store), await leased(subject.store)];
      await subject.store.startJobs([fenceOf(early)]);
      const before = (await subject.store.findDetached(early.id))!.started_at!;
      const ends = [late, early].map((fence) => aFinish(fence, { started_ago_ms: 60_000 }));
      expect(await subject.store.finishJobs(ends)).toEqual(['accepted', 'accepted']);
      const storyOf = async (id: string) => (await subject.store.findJob(id))!.attempts[0]!;
      const { started_at, ended_at } = await storyOf(late.id);
      expect(ended_at! - started_at!).toBe(60_000);
      expect((await subject.store.findDetached(late.id))!.started_at).toBe(started_at);
      expect((await storyOf(early.id)).started_at).toBe(before);
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
      const [used] = await subject.store.findUsage([first.id]);
      expect(used).toMatchObject({ prompt_tokens: usage.prompt_tokens });
    });

    test('a job that ends with nobody left who counted has a usage row of what is known', async () => {
      const fence = await leased(subject.store);
      await subject.store.startJobs([fence]);
      const lost = aFinish(fence, { state: 'failed', error_code: 'attempts_exhausted', result: null });
      expect(await subject.store.finishJobs([lost, lost])).toEqual(['accepted', 'duplicate']);
      expect(await subject.store.findUsage([fence.id])).toMatchObject([
        {
          key: fence.key,
          model: fence.model,
          node: fence.node,
          outcome: 'attempts_exhausted',
          status: 502,
          attempts: 1,
          // By the bytes of its request: it had started.
          prompt_tokens: 4,
          estimated: true,
        },
      ]);
    });

    test('an end without its node’s word has an estimate, which that word replaces once', async () => {
      const [cancelled, waiting, expired, lost] = [
        await leased(subject.store),
        aDetachedJob(),
        await leased(subject.store, { run_timeout_ms: 0 }),
        await leased(subject.store),
      ];
      await subject.store.acceptJobs([waiting]);
      await subject.store.startJobs([cancelled, expired, lost].map(fenceOf));
      const ends = [];
      for (const { id } of [cancelled, waiting]) ends.push(await subject.store.cancelJob(id, 'by its owner'));
      await subject.beneath.clockMoves();
      const timed_out = await subject.store.expireJobs(100, []);
      await subject.store.finishJobs([aFinish(lost, { state: 'failed', error_code: 'attempts_exhausted' })]);
      const ids = [cancelled, waiting, expired, lost].map(({ id }) => id);
      const rows = async () => {
        const found = new Map((await subject.store.findUsage(ids)).map((row) => [row.job, row]));
        return ids.map((id) => found.get(id)!);
      };
      const told = ends.map((end) => ('cancelled' in end ? end.cancelled.usage : undefined));
      const before = await rows();
      expect(before.slice(0, 3)).toEqual([...told, timed_out.find(({ id }) => id === expired.id)!.usage]);
      const tokens = (some: typeof before) => some.map((row) => [row.prompt_tokens, row.completion_tokens]);
      expect(tokens(before)).toEqual([4, 0, 4, 4].map((prompt) => [prompt, 0]));
      expect(before.map(({ estimated }) => estimated)).toEqual([true, true, true, true]);

      const word = { attempt: 1, node: 'node_a', prompt_tokens: 11, completion_tokens: 22, cached_tokens: 3 };
      const strange = [
        { attempt: 2, node: 'node_a' },
        { attempt: 1, node: 'node_b' },
      ];
      for (const other of strange)
        await subject.store.correctUsage(ids.map((job) => ({ job, ...word, ...other, estimated: false })));
      expect(await rows()).toEqual(before);
      await subject.store.correctUsage(ids.map((job) => ({ job, ...word, estimated: true })));
      const after = await rows();
      expect(tokens(after)).toEqual([
        [11, 22],
        [0, 0],
        [11, 22],
        [11, 22],
      ]);
      expect(after[0]).toEqual({ ...before[0], prompt_tokens: 11, completion_tokens: 22, cached_tokens: 3 });
      const again = { ...word, prompt_tokens: 500, estimated: false };
      await subject.store.correctUsage([...ids, 'job_none'].map((job) => ({ job, ...again })));
      expect(await rows()).toEqual(after);
    });

    test('what a result has counted is corrected by nobody', async () => {
      const [counted, guessed] = [await leased(subject.store), await leased(subject.store)];
      const usage = (id: string) =>
        aSettlement({ id }, { node: 'node_a', attempts: 1, estimated: true }).usage;
      await subject.store.finishJobs([
        aFinish(counted, { usage: usage(counted.id) }),
        aFinish(guessed, { usage: usage(guessed.id), provisional: true }),
      ]);
      const word = { attempt: 1, node: 'node_a', completion_tokens: 0, cached_tokens: 0, estimated: false };
      const ids = [counted.id, guessed.id];
      await subject.store.correctUsage(ids.map((job) => ({ job, ...word, prompt_tokens: 1234 })));
      const rows = await subject.store.findUsage(ids);
      expect(new Map(rows.map(({ job, prompt_tokens }) => [job, prompt_tokens]))).toEqual(
        new Map([
          [counted.id, usage(counted.id).prompt_tokens],
          [guessed.id, 1234],
        ]),
      );
    });

    test('open jobs tell what they reserve of their keys, those that have ended nothing', async () => {
      const [open, done, nobody] = [
        await leased(subject.store, { key: newId('key'), reserved_tokens: 7 }),
        await leased(subject.store),
        aDetachedJob({ key: null }),
      ];
      const waiting = aDetachedJob({ reserved_tokens: 8 });
      await subject.store.acceptJobs([waiting, nobody]);
      await subject.store.finishJobs([aFinish(done)]);
      const ids = [open, done, nobody, waiting].map(({ id }) => id);
      const all = await subject.store.loadReservations(10_000);
      expect(all.filter(({ job }) => ids.includes(job)).toSorted((a, b) => a.tokens - b.tokens)).toEqual([
        { job: open.id, key: open.key, tokens: 7, created_at: T0 },
        { job: waiting.id, key: 'key_a', tokens: 8, created_at: T0 },
      ]);
      expect(await subject.store.loadReservations(1)).toEqual(all.slice(0, 1));
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

    test('a job that goes back waits by the queue deadline again; one that never started keeps the one it had', async () => {
      const fence = await leased(subject.store);
      const offered = await subject.store.findDetached(fence.id);
      await subject.store.requeueJobs([aRequeue(fence, { counts: false })]);
      expect((await subject.store.findDetached(fence.id))?.deadline_at).toBe(offered!.deadline_at);
      const [again] = await claim(subject.store, fence.lane, 1);
      await subject.store.startJobs([fenceOf(again!)]);
      const running = await subject.store.findDetached(fence.id);
      expect(running!.deadline_at! - running!.started_at!).toBe(600_000);
      await subject.store.requeueJobs([aRequeue(again!)]);
      const requeued = await subject.store.findDetached(fence.id);
      expect(requeued!.deadline_at! - running!.started_at!).toBeGreaterThanOrEqual(86_400_000);
    });

    test('equal rejections in a row are one story, from the first offer to the last answer, and use up no attempt', async () => {
      const reject = (job: ClaimedJob, message: string) =>
        subject.store.requeueJobs([
          aRequeue(job, { outcome: 'rejected', code: 'rejected', message, counts: false }),
        ]);
      let job = await leased(subject.store);
      const first = await subject.store.findDetached(job.id);
      // Two nodes in turn, as they are where each is avoided after its own.
      for (const node of ['node_b', 'node_a', 'node_b', 'node_a', 'node_b']) {
        expect(await reject(job, 'journal_unwritable')).toEqual(['accepted']);
        [job] = (await claim(subject.store, job.lane, 1, node)) as [ClaimedJob];
      }
      await reject(job, 'draining');
      const told = async () =>
        (await subject.store.findJob(job.id))!.attempts.map(({ attempt, node, message }) =>
          [attempt, node, message].join(' '),
        );
      expect(await told()).toEqual([
        '4 node_b journal_unwritable',
        '5 node_a journal_unwritable',
        '6 node_b draining',
      ]);
      const { attempts } = (await subject.store.findJob(job.id))!;
      expect(attempts[1]).toMatchObject({ offered_at: first!.offered_at, code: 'rejected' });
      expect(attempts[1]!.ended_at).toBeGreaterThanOrEqual(attempts[0]!.ended_at!);
      expect(await subject.store.findDetached(job.id)).toMatchObject({ attempt: 6, failures: 0 });
      // What came in between keeps the two apart.
      [job] = (await claim(subject.store, job.lane, 1, 'node_b')) as [ClaimedJob];
      await subject.store.requeueJobs([aRequeue(job)]);
      [job] = (await claim(subject.store, job.lane, 1, 'node_b')) as [ClaimedJob];
      await reject(job, 'draining');
      expect((await told()).slice(2)).toEqual([
        '6 node_b draining',
        '7 node_b the node was lost',
        '8 node_b draining',
      ]);
    });

    test('a job has another mark after each of its transitions, and the same one without', async () => {
      const job = aDetachedJob();
      const attached = aSettlement();
      const marks: string[] = [];
      const look = async () => {
        const rows = await subject.store.jobMarks([job.id, attached.job.id, 'job_unknown']);
        expect(rows.map(({ id }) => id)).toEqual([job.id]);
        marks.push(rows[0]!.mark);
      };
      await subject.store.acceptJobs([job]);
      await look();
      const [claimed] = await claim(subject.store, job.lane, 1);
      await look();
      await subject.store.startJobs([fenceOf(claimed!)]);
      await look();
      await subject.store.keepJobs('node_a', 2, 'rep_a', [inventoried(claimed!)]);
      await look();
      await subject.store.requeueJobs([aRequeue({ ...claimed!, epoch: 2 })]);
      await look();
      const [again] = await claim(subject.store, job.lane, 1);
      await look();
      await subject.store.finishJobs([aFinish(again!)]);
      await look();
      expect(new Set(marks).size).toBe(marks.length);
      await look();
      expect(marks.at(-1)).toBe(marks.at(-2));
      await subject.store.settle([attached]);
      expect(await subject.store.jobMarks([attached.job.id])).toEqual([]);
    });

    test('a job in back-off is claimed by nobody until its time is over', async () => {
      const fence = await leased(subject.store);
      await subject.store.requeueJobs([aRequeue(fence, { delay_ms: 30, counts: false })]);
      expect(await claim(subject.store, fence.lane, 1)).toEqual([]);
      await expect
        .poll(() => subject.store.readyJobs(100))
        .toContainEqual({
          lane: fence.lane,
          order_key: fence.order_key,
          priority: fence.priority,
        });
      expect(await claim(subject.store, fence.lane, 1)).toMatchObject([
        { id: fence.id, attempt: 2, failures: 0 },
      ]);
    });

    test('a node that comes back keeps its attempts under its new epoch, and loses those given away', async () => {
      const node = newId('node');
      const [mine, gone] = [await leased(subject.store, {}, node), await leased(subject.store, {}, node)];
      await subject.store.requeueJobs([aRequeue(gone)]);
      expect(await subject.store.heldJobs(node)).toMatchObject([{ id: mine.id, state: 'leased', epoch: 1 }]);
      const inventory = [mine, gone].map(inventoried);
      expect(await subject.store.keepJobs(node, 2, 'rep_b', inventory)).toMatchObject([
        { id: mine.id, epoch: 2 },
      ]);
      expect(await subject.store.keepJobs(node, 1, 'rep_c', inventory)).toEqual([]);
      expect(await subject.store.finishJobs([aFinish(mine), aFinish({ ...mine, epoch: 2 })])).toEqual([
        'stale',
        'accepted',
      ]);
    });

    test('a node that comes back with a result keeps it while nobody else was given the job', async () => {
      const node = newId('node');
      const job = await leased(subject.store, {}, node);
      await subject.store.requeueJobs([aRequeue(job)]);
      const keep = (by: string, finished: boolean) =>
        subject.store.keepJobs(by, 7, 'rep_b', [{ ...inventoried(job), finished }]);
      expect(await keep(node, false)).toEqual([]);
      expect(await keep('node_other', true)).toEqual([]);
      expect(await keep(node, true)).toMatchObject([{ id: job.id, attempt: 1, state: 'running', epoch: 7 }]);
      expect(await claim(subject.store, job.lane, 1)).toEqual([]);
      expect(await subject.store.finishJobs([aFinish({ ...job, epoch: 7 })])).toEqual(['accepted']);
      expect((await subject.store.findJob(job.id))?.attempts).toMatchObject([
        { attempt: 1, node, outcome: 'succeeded', message: null },
      ]);
    });

    test('what was given to another node, or has failed by its own result, is not kept again', async () => {
      const node = newId('node');
      const [given, failed] = [await leased(subject.store, {}, node), await leased(subject.store, {}, node)];
      await subject.store.requeueJobs([aRequeue(given), aRequeue(failed, { digest: 'f1' })]);
      expect(await claim(subject.store, given.lane, 1, 'node_b')).toHaveLength(1);
      const inventory = [given, failed].map((job) => ({ ...inventoried(job), finished: true }));
      expect(await subject.store.keepJobs(node, 7, 'rep_b', inventory)).toEqual([]);
    });

    test('the request comes again with what is kept, if asked for', async () => {
      const job = await leased(subject.store);
      const keep = (wants_request: boolean) =>
        subject.store.keepJobs('node_a', 2, 'rep_b', [{ ...inventoried(job), wants_request }]);
      expect(await keep(false)).toMatchObject([{ id: job.id, request: null, model: 'llama3' }]);
      expect(await keep(true)).toMatchObject([{ id: job.id, request: job.request }]);
    });

    test('the lanes that could be served, each with its first order key', async () => {
      const [x, y, busy] = [newId('boot'), newId('boot'), newId('boot')];
      const jobs = [
        [x, 5],
        [x, 3],
        [y, 4],
        [busy, 1],
      ] as const;
      await subject.store.acceptJobs(jobs.map(([lane, order_key]) => aDetachedJob({ lane, order_key })));
      await claim(subject.store, busy, 1);
      const ready = await subject.store.readyLanes(10_000, '');
      expect(ready.filter(({ lane }) => [x, y, busy].includes(lane))).toEqual(
        [
          { lane: x, order_key: 3, priority: 0 },
          { lane: y, order_key: 4, priority: 0 },
        ].sort((a, b) => (a.lane < b.lane ? -1 : 1)),
      );
      expect(await subject.store.readyLanes(1, '')).toEqual(ready.slice(0, 1));
      expect(await subject.store.readyLanes(10_000, ready[0]!.lane)).toEqual(ready.slice(1));
    });

    test('nodes that hold something, each once', async () => {
      const [one, two] = [newId('boot'), newId('boot')];
      await subject.store.acceptJobs([one, one, two].map((lane) => aDetachedJob({ lane })));
      const names = [`node_${one}`, `node_${two}`];
      await claim(subject.store, one, 2, names[0]);
      await claim(subject.store, two, 1, names[1]);
      const held = await subject.store.heldNodes();
      expect(held.filter((node) => names.includes(node)).toSorted()).toEqual(names.toSorted());
    });

    test('it tells how long until something is due', async () => {
      await subject.store.acceptJobs([aDetachedJob({ queue_timeout_ms: 1 })]);
      expect(await subject.store.nextDue([])).toBeLessThanOrEqual(1);
    });

    test('a cancelled job refuses what comes later, and tells whom to stop', async () => {
      const fence = await leased(subject.store);
      await subject.store.startJobs([fenceOf(fence)]);
      expect(await subject.store.cancelJob(fence.id, 'by its owner')).toEqual({
        cancelled: {
          id: fence.id,
          state: 'cancelled',
          error_code: 'cancelled',
          fence: fenceOf(fence),
          usage: expect.objectContaining({ job: fence.id, outcome: 'cancelled', node: fence.node }),
        },
      });
      expect(await subject.store.cancelJob(fence.id, 'again')).toEqual({ refused: 'ended' });
      expect(await subject.store.cancelJob('job_none', 'x')).toEqual({ refused: 'unknown' });
      expect(await subject.store.finishJobs([aFinish(fence)])).toEqual(['stale']);
      expect((await subject.store.findJob(fence.id))?.attempts).toMatchObject([{ outcome: 'cancelled' }]);
    });

    test('a job past its queue or run deadline is timed out once, by the store’s clock, and says which it was', async () => {
      const waiting = aDetachedJob({ queue_timeout_ms: 0 });
      await subject.store.acceptJobs([waiting]);
      const spared_too: Awaited<ReturnType<typeof subject.store.expireJobs>> = [];
      const running = await leased(subject.store, { run_timeout_ms: 0 });
      const endless = await leased(subject.store, { queue_timeout_ms: 5, run_timeout_ms: null });
      await subject.store.startJobs([fenceOf(running), fenceOf(endless)]);
      await subject.beneath.clockMoves();
      for (const spared of [running.id, running.node]) {
        const others = await subject.store.expireJobs(100, [spared, waiting.id]);
        expect(others.map(({ id }) => id)).not.toContain(running.id);
        spared_too.push(...others);
      }
      const ended = [...spared_too, ...(await subject.store.expireJobs(100, []))];
      expect(ended).toContainEqual({
        id: waiting.id,
        state: 'timed_out',
        error_code: 'queue_timeout',
        fence: null,
        usage: expect.objectContaining({ job: waiting.id, node: null }),
      });
      expect(ended).toContainEqual({
        id: running.id,
        state: 'timed_out',
        error_code: 'run_timeout',
        fence: fenceOf(running),
        usage: expect.objectContaining({ job: running.id, outcome: 'run_timeout' }),
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
      expect(await subject.store.measureResult(open.id)).toEqual({ result_bytes: null, erase_at: null });
      await subject.store.finishJobs([aFinish(open)]);
      expect((await subject.store.measureResult(open.id))?.result_bytes).toBe(
        Buffer.byteLength((await subject.store.loadResult(open.id))!),
      );
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
