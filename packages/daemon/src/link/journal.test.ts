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
  await before.stop();
  const entries = before.posts('journal_keep').map(({ entry }) => entry);
  return structuredClone(entries.filter(({ ended }) => ended !== null));
}

describe('the link thread', () => {
  test('has a detached result in the journal from soon after its end to its acknowledgement, and attached work never', async () => {
    await bench.start();
    await bench.up();
    const { control } = bench;
    control.ack_results = false;
    control.offer('job_attached');
    control.offer('job_a', detached);
    await control.message('job.completed', 'job_attached');
    const { result } = await control.message('job.completed', 'job_a');
    await control.until(() => kept().length > 0);
    expect(kept().map(({ offer, ended }) => [offer.job, ended?.answer?.body.byteLength])).toEqual([
      ['job_a', result.length],
    ]);
    expect(dropped()).toEqual([]);
    control.send({ type: 'result.ack', job: 'job_a', attempt: 1, outcome: 'accepted' });
    await control.until(() => dropped().length === 1);
    expect(dropped()).toEqual(['job_a']);
  });

  test('has what takes long in the journal before it has ended', async () => {
    const { answer } = bench.backend;
    bench.backend.answer = () => undefined;
    await bench.start();
    await bench.up();
    bench.control.offer('job_long', detached);
    await bench.control.until(() => kept().length > 0);
    expect(kept()).toMatchObject([{ offer: { job: 'job_long' }, ended: null }]);
    answer(bench.backend.requests[0]!);
    await bench.control.until(() => dropped().length === 1);
  });

  test('spares the journal what is short and acknowledged at once', async () => {
    await bench.start();
    await bench.up();
    const { control } = bench;
    control.offer('job_short', detached);
    await control.message('job.completed', 'job_short');
    await control.until(() => bench.link.attempts.size === 0);
    control.ack_results = false;
    control.offer('job_kept', detached);
    await control.until(() => kept().length > 0);
    expect(kept().map(({ offer }) => offer.job)).toEqual(['job_kept']);
    expect(dropped()).toEqual([]);
  });

  test('has what was not acknowledged in the journal as soon as the link is gone', async () => {
    await bench.start(1);
    await bench.up();
    const { control } = bench;
    control.ack_results = false;
    control.offer('job_a', detached);
    await control.message('job.completed', 'job_a');
    control.socket!.terminate();
    await control.until(() => bench.posts('disconnected').length === 1);
    expect(kept().map(({ offer }) => offer.job)).toEqual(['job_a']);
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
    const acknowledge = (at: number) =>
      control.send({ type: 'result.ack', job: `job_${at}`, attempt: 1, outcome: 'accepted' });
    // One of which the next would be refused again is not told of.
    for (let at = 0; at < KEPT_RESULTS_MOST / 2; at++) acknowledge(at);
    control.offer('job_w', detached);
    expect((await control.message('job.rejected', 'job_w')).reason).toBe('journal_full');
    acknowledge(KEPT_RESULTS_MOST / 2);
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
