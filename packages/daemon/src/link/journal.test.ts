import { STORE_OWNER } from '@flotilla/protocol';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { LinkBench } from '../testing/link-bench.ts';
import type { JournalEntry } from '../threads.ts';
import { KEPT_RESULTS_MOST } from './attempts.ts';

/** What the link thread gives to the journal, and what it does with what it gets from it. */
let bench: LinkBench;
beforeEach(() => {
  bench = new LinkBench();
});
afterEach(() => bench.stop());

const detached = { owner: STORE_OWNER };
const kept = () => bench.posts('journal_keep').map(({ entry }) => entry);
const dropped = () => bench.posts('journal_drop').map(({ job }) => job);

/** As an earlier process left them. */
async function leave(...jobs: string[]): Promise<JournalEntry[]> {
  const before = new LinkBench();
  before.control.ack_results = false;
  await before.start();
  await before.up();
  for (const job of jobs) {
    before.control.offer(job, detached);
    await before.control.message('job.completed', job);
  }
  const entries = before.posts('journal_keep').map(({ entry }) => entry);
  await before.stop();
  return structuredClone(entries.filter(({ ended }) => ended !== null));
}

describe('the link thread', () => {
  test('has detached work in the journal from its offer to its acknowledgement, and attached work never', async () => {
    await bench.start();
    await bench.up();
    const { control } = bench;
    control.ack_results = false;
    control.offer('job_attached');
    control.offer('job_a', detached);
    await control.message('job.completed', 'job_attached');
    const { result } = await control.message('job.completed', 'job_a');
    expect(kept().map(({ offer, ended }) => [offer.job, ended?.answer?.body.byteLength])).toEqual([
      ['job_a', undefined],
      ['job_a', result.length],
    ]);
    expect(dropped()).toEqual([]);
    control.send({ type: 'result.ack', job: 'job_a', attempt: 1, outcome: 'accepted' });
    await control.until(() => dropped().length === 1);
    expect(dropped()).toEqual(['job_a']);
  });

  test('sends what an earlier process left, once its control plane says that it may, and lets go when it has it', async () => {
    const journal = await leave('job_a');
    const { control } = bench;
    let stream = 0;
    control.verdicts = (item) => {
      expect(item).toMatchObject({ job: 'job_a', attempt: 1, owner: STORE_OWNER, state: 'finished' });
      stream = control.newStream();
      return { verdict: 'keep', stream, acked_offset: 0, head_received: false };
    };
    await bench.start(0, (data) => ({ ...data, journal }));
    const completed = await control.message('job.completed', 'job_a');
    expect(completed).toEqual(journal[0]!.ended!.result);
    const seen = control.stream(stream);
    expect(seen.body.equals(Buffer.from(journal[0]!.ended!.answer!.body))).toBe(true);
    expect(seen).toMatchObject({ gaps: 0, heads: 1, end: { complete: true } });
    await control.until(() => dropped().length === 1);
    expect(bench.link.attempts.size).toBe(0);
    expect(bench.backend.requests).toHaveLength(0);
  });

  test('says that what an earlier process had only begun is over', async () => {
    const [entry] = await leave('job_a');
    await bench.start(0, (data) => ({ ...data, journal: [{ ...entry!, ended: null }] }));
    await bench.control.message('job.released', 'job_a');
    expect(bench.control.registrations[0]!.inventory).toMatchObject([{ job: 'job_a', state: 'released' }]);
    await bench.control.until(() => dropped().length === 1);
  });

  test('takes on no more detached work while its journal is full or cannot be written, says so at once, and attached work goes on', async () => {
    const [entry] = await leave('job_a');
    const journal = Array.from({ length: KEPT_RESULTS_MOST }, (_, at) => ({
      offer: { ...entry!.offer, job: `job_${at}` },
      ended: { ...entry!.ended!, result: { ...entry!.ended!.result, job: `job_${at}` } },
    }));
    const { control } = bench;
    control.verdicts = () => ({ verdict: 'wait' });
    // No beat but those that something is to be said with.
    control.heartbeat_ms = 60_000;
    const told = () => control.all('node.heartbeat').at(-1)?.journal?.health;
    await bench.start(0, (data) => ({ ...data, journal }));
    await bench.up();
    control.offer('job_x', detached);
    expect((await control.message('job.rejected', 'job_x')).reason).toBe('journal_full');
    expect(control.registrations[0]!.journal).toMatchObject({
      health: 'down',
      reason: expect.stringContaining('full'),
    });
    control.send({ type: 'result.ack', job: 'job_0', attempt: 1, outcome: 'accepted' });
    await control.until(() => told() === 'healthy');
    bench.link.hear({ type: 'journal_health', health: { health: 'down', reason: 'no room' } });
    await control.until(() => told() === 'down');
    control.offer('job_y', detached);
    expect((await control.message('job.rejected', 'job_y')).reason).toBe('journal_unwritable');
    control.offer('job_z');
    await control.message('job.completed', 'job_z');
    bench.link.hear({ type: 'journal_health', health: { health: 'healthy' } });
    await control.until(() => told() === 'healthy');
    control.offer('job_v', detached);
    await control.message('job.completed', 'job_v');
  });

  test('leaves a result that was not acknowledged by the end of a drain to the next process', async () => {
    await bench.start();
    await bench.up();
    const { control } = bench;
    control.ack_results = false;
    control.offer('job_a', detached);
    await control.message('job.completed', 'job_a');
    bench.link.hear({ type: 'drain', deadline_ms: 50, reason: 'test' });
    await control.until(() => bench.posts('stopped').length === 1);
    expect(bench.posts('stopped')).toMatchObject([{ why: 'drained', released: 0, kept: 1 }]);
    expect(dropped()).toEqual([]);
    expect(control.all('job.released')).toEqual([]);
  });
});
