import type { ClaimedJob, DetachedJob, JobFilter, StoredJob } from '@flotilla/core';
import { JOB_STATES } from '@flotilla/protocol';
import { beforeAll, describe, expect, test } from 'vitest';
import { aDetachedJob, aFinish, aRequeue, fenceOf, leased } from './detached-rows.ts';
import { aJob, aSettlement, newId, T0 } from './rows.ts';
import type { Subject } from './store.suite.ts';

type Own = Pick<DetachedJob, 'id' | 'key' | 'model' | 'created_at'>;

/** Open and ended jobs are looked for in different places (decision 025): whatever is asked, they come as one line. */
export function listingsSuite(subject: Subject): void {
  const keys = [newId('key'), newId('key')];
  const models = [newId('key'), newId('key')];
  const own = new Map<string, StoredJob>();

  const accept = (job: Own) => subject.store.acceptJobs([aDetachedJob(job)]);
  const lease = (job: Own): Promise<ClaimedJob> => leased(subject.store, job);
  const start = async (job: Own) => {
    const fence = fenceOf(await lease(job));
    await subject.store.startJobs([fence]);
    return fence;
  };
  const ways: ((job: Own) => Promise<unknown>)[] = [
    accept,
    lease,
    start,
    async (job) => subject.store.requeueJobs([aRequeue(await lease(job), { delay_ms: 3_600_000 })]),
    async (job) => subject.store.finishJobs([aFinish(await start(job))]),
    async (job) => subject.store.finishJobs([aFinish(await start(job), { state: 'failed' })]),
    async (job) => accept(job).then(() => subject.store.cancelJob(job.id, 'No.')),
    (job) => subject.store.recordOpen([aJob({ ...job, state: 'queued' })]),
    (job) => subject.store.recordOpen([aJob({ ...job, state: 'running' })]),
    (job) => subject.store.settle([aSettlement(job)]),
    (job) => subject.store.settle([aSettlement({ ...job, state: 'timed_out' })]),
  ];

  async function listed(filter: JobFilter, limit: number): Promise<string[]> {
    const ids: string[] = [];
    for (let after: string | null | undefined; after !== null; ) {
      const page = await subject.store.listJobs(filter, { limit, ...(after ? { after } : {}) });
      if (page.next_after !== null) expect(page.rows).toHaveLength(limit);
      ids.push(...page.rows.map(({ id }) => id));
      after = page.next_after;
    }
    return ids;
  }

  describe('listings of jobs of every state', () => {
    beforeAll(async () => {
      const count = ways.length * 4;
      for (let n = 0; n < count; n++) {
        // So that neighbours in time differ in all things: 7 and `count` have no common divisor.
        const created_at = T0 + ((n * 7) % count);
        const job = {
          id: newId('job', created_at),
          created_at,
          key: keys[n % 2]!,
          model: models[(n >> 1) % 2]!,
        };
        await ways[n >> 2]!(job);
        own.set(job.id, (await subject.store.findJob(job.id))!);
      }
      expect(new Set([...own.values()].map(({ state }) => state))).toEqual(new Set(JOB_STATES));
    });

    const filters: JobFilter[] = [undefined, ...JOB_STATES].flatMap((state) => {
      const of = state === undefined ? {} : { state };
      return [
        { ...of },
        { ...of, key: keys[0]! },
        { ...of, model: models[0]! },
        { ...of, key: keys[1]!, model: models[1]! },
      ];
    });
    test.each(filters)(
      '$state, key $key, model $model: all that match, newest first, page by page',
      async (filter) => {
        const { key, model, state } = filter;
        const wanted = [...own.values()].filter(
          (job) =>
            job.key === (key ?? job.key) &&
            job.model === (model ?? job.model) &&
            job.state === (state ?? job.state),
        );
        // Others have put their jobs into this store too.
        const found = (await listed(filter, key === undefined && model === undefined ? 500 : 3)).filter(
          (id) => own.has(id),
        );
        expect(wanted.length).toBeGreaterThan(0);
        expect(found).toEqual(
          wanted
            .map(({ id }) => id)
            .toSorted()
            .reverse(),
        );
      },
    );
  });
}
