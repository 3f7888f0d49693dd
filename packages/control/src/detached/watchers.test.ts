import type { JobMark } from '@flotilla/core';
import { ManualClock } from '@flotilla/core/testing';
import { describe, expect, test, vi } from 'vitest';
import { memoryLog } from '../testing/memory-log.ts';
import { LOOK_EVERY_MS, type News, OF_A_KEY_MOST, createWatchers } from './watchers.ts';

function setup() {
  const clock = new ManualClock();
  const marks: Record<string, string> = { job_a: '1', job_b: '1' };
  const jobMarks = vi.fn<(ids: readonly string[]) => Promise<JobMark[]>>(async (ids) =>
    ids.flatMap((id) => (marks[id] === undefined ? [] : [{ id, mark: marks[id] }])),
  );
  const watchers = createWatchers({ clock, log: memoryLog(), store: { jobMarks } });
  const heard: string[] = [];
  const listen = (name: string, job: string, key = 'key_a') =>
    watchers.watch(job, key, ({ type }: News) => heard.push(`${name} ${type}`));
  /** The next look, and what it has told. */
  async function look(): Promise<string[]> {
    heard.length = 0;
    clock.advance(LOOK_EVERY_MS);
    await new Promise((next) => void setImmediate(next));
    return [...heard];
  }
  return { clock, marks, jobMarks, watchers, heard, listen, look };
}

describe('who listens to jobs', () => {
  test('is told by one look at the store for all of them which jobs have moved, and nobody looks where nobody listens', async () => {
    const { clock, marks, jobMarks, listen, look } = setup();
    const stops = [listen('1', 'job_a'), listen('2', 'job_a', 'key_b'), listen('3', 'job_b')];
    // What happened between its own look and this one is not known.
    expect(await look()).toEqual(['1 moved', '2 moved', '3 moved']);
    expect(await look()).toEqual(['1 still', '2 still', '3 still']);
    marks['job_b'] = '2';
    expect(await look()).toEqual(['1 still', '2 still', '3 moved']);
    // Erased meanwhile.
    delete marks['job_a'];
    expect(await look()).toEqual(['1 moved', '2 moved', '3 still']);
    expect(jobMarks.mock.calls).toEqual(Array.from({ length: 4 }, () => [['job_a', 'job_b']]));
    for (const stop of stops) stop();
    expect(clock.pending).toBe(0);
    listen('4', 'job_b');
    expect(await look()).toEqual(['4 moved']);
    expect(jobMarks.mock.lastCall).toEqual([['job_b']]);
  });

  test('is told at once of what moves here', () => {
    const { watchers, heard, listen, jobMarks } = setup();
    listen('1', 'job_a');
    listen('2', 'job_b');
    watchers.moved('job_a');
    expect(heard).toEqual(['1 moved']);
    expect(jobMarks).not.toHaveBeenCalled();
  });

  test('is told that the store could not be asked, and is looked for again after it', async () => {
    const { jobMarks, listen, look } = setup();
    listen('1', 'job_a');
    jobMarks.mockRejectedValueOnce(new Error('away'));
    expect(await look()).toEqual(['1 failed']);
    expect(await look()).toEqual(['1 moved']);
  });

  test('cannot take the places of other keys', () => {
    const { listen } = setup();
    const stops = Array.from({ length: OF_A_KEY_MOST }, (_, at) => listen('1', `job_${at}`));
    expect(() => listen('1', 'job_a')).toThrow(/close some of its \/events, or read the others with GET/);
    listen('2', 'job_a', 'key_b');
    stops[0]!();
    // Said twice is said once.
    stops[0]!();
    listen('1', 'job_a');
    expect(() => listen('1', 'job_a')).toThrow(/100 jobs already/);
  });
});
