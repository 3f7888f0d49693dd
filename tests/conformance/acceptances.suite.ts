import { describe, expect, test } from 'vitest';
import { aDetachedJob } from './detached-rows.ts';
import { newId } from './rows.ts';
import type { Subject } from './store.suite.ts';

export function acceptancesSuite(subject: Subject): void {
  describe('submissions of detached jobs', () => {
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
      // And without adding anything, in any order, several of one key among them.
      const asked = [
        { key: 'key_b', idempotency },
        { key: 'key_c', idempotency },
        { key: 'key_a', idempotency: { ...idempotency, body_hash: 'h2' } },
        { key: 'key_a', idempotency },
        { key: null, idempotency },
        { key: 'key_a', idempotency: { ...idempotency, key: newId('request') } },
        { key: 'key_a', idempotency },
      ];
      expect(await subject.store.findReplayed(asked)).toEqual([
        { existing: stranger.id },
        null,
        { conflict: first.id },
        { existing: first.id },
        { existing: bootstrap[0].id },
        null,
        { existing: first.id },
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
  });
}
