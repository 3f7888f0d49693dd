import { FlotillaError } from '@flotilla/protocol';
import { describe, expect, test } from 'vitest';
import { ManualClock } from '@flotilla/core/testing';
import { Batcher, type BatcherOptions } from './batcher.ts';

const LATE = 1e9;
const down = () => new FlotillaError('unavailable', 'The store cannot be reached.');
const badRow = () => Object.assign(new Error('invalid input'), { code: '22P02' });

/** A store that answers when the test says so. */
function harness(options: Partial<BatcherOptions<number, number>> = {}) {
  const clock = new ManualClock();
  const flights: { rows: number[]; commit(): void; fail(error: Error): void }[] = [];
  let pings = 0;
  let up = true;
  const batcher = new Batcher<number, number>({
    clock,
    flush: (rows) =>
      new Promise((resolve, reject) => {
        flights.push({ rows, commit: () => resolve(rows.map((row) => row * 10)), fail: reject });
      }),
    ping: () => {
      pings += 1;
      return up ? Promise.resolve() : Promise.reject(down());
    },
    ...options,
  });
  return {
    clock,
    batcher,
    flights,
    pings: () => pings,
    setUp: (value: boolean) => void (up = value),
    last: () => flights.at(-1)!,
  };
}

/** Lets everything that is ready to run do so. */
const settled = () => new Promise<void>((done) => void setImmediate(done));
const outcome = (promise: Promise<number>) =>
  promise.then(
    (value) => value,
    (error: Error) => error.message,
  );

describe('the batcher', () => {
  test('a lone row is written at once; what queues meanwhile goes together in the next flush', async () => {
    const { batcher, flights, last } = harness();
    const answers = [1, 2, 3, 4].map((row) => batcher.add(row, LATE));
    expect(flights.map(({ rows }) => rows)).toEqual([[1]]);
    last().commit();
    await settled();
    expect(last().rows).toEqual([2, 3, 4]);
    last().commit();
    expect(await Promise.all(answers)).toEqual([10, 20, 30, 40]);
    await settled();
    expect(flights).toHaveLength(2);
  });

  test('says when what was added so far is written, whatever became of it, and waits for nothing later', async () => {
    const { batcher, last } = harness();
    await batcher.written();
    batcher.add(1, LATE).catch(() => undefined);
    let written = false;
    const wait = batcher.written().then(() => (written = true));
    void batcher.add(2, LATE);
    await settled();
    expect(written).toBe(false);
    last().fail(badRow());
    await wait;
    await settled();
    expect(last().rows).toEqual([2]);
    last().commit();
  });

  test('a flush carries no more bytes than it may, but a row that is larger by itself', async () => {
    const weigh = { bytesOf: (row: number) => row, max_bytes: 5 };
    const { batcher, flights, last } = harness({ weigh });
    const answers = [9, 2, 3, 1, 8].map((row) => batcher.add(row, LATE));
    for (let flight = 0; flight < 4; flight++) {
      last().commit();
      await settled();
    }
    expect(flights.map(({ rows }) => rows)).toEqual([[9], [2, 3], [1], [8]]);
    await Promise.all(answers);
  });

  test('the first row of a burst waits for those that follow at once, where it is to', async () => {
    const { promise, resolve } = Promise.withResolvers<void>();
    const { batcher, flights, last } = harness({ gather: () => promise });
    const answers = [1, 2, 3].map((row) => batcher.add(row, LATE));
    expect(flights).toEqual([]);
    resolve();
    await settled();
    expect(flights.map(({ rows }) => rows)).toEqual([[1, 2, 3]]);
    last().commit();
    expect(await Promise.all(answers)).toEqual([10, 20, 30]);
  });

  test('keeps a pace while several rows come together, and a row that comes alone waits for nothing', async () => {
    const { batcher, clock, flights, last } = harness({ pace_ms: 3 });
    const add = (...rows: number[]) => rows.map((row) => batcher.add(row, LATE));
    const answers = add(1, 2, 3, 4, 5);
    expect(last().rows).toEqual([1]);
    last().commit();
    await settled();
    expect(last().rows).toEqual([2, 3, 4, 5]);
    last().commit();
    await settled();
    answers.push(...add(6));
    clock.advance(2);
    answers.push(...add(7));
    await settled();
    expect(flights).toHaveLength(2);
    clock.advance(1);
    await settled();
    expect(last().rows).toEqual([6, 7]);
    last().commit();
    await settled();
    answers.push(...add(8));
    expect(last().rows).toEqual([8]);
    last().commit();
    await Promise.all(answers);
    await settled();
    expect(clock.pending).toBe(0);
  });

  test('a flush carries no more rows than it may', async () => {
    const { batcher, flights, last } = harness({ max_rows: 2 });
    const answers = [1, 2, 3, 4, 5].map((row) => batcher.add(row, LATE));
    for (let flight = 0; flight < 3; flight++) {
      last().commit();
      await settled();
    }
    expect(flights.map(({ rows }) => rows)).toEqual([[1], [2, 3], [4, 5]]);
    last().commit();
    await Promise.all(answers);
  });

  test('over its bound a row is refused as unavailable and costs the others nothing', async () => {
    const { batcher, last } = harness({ max_waiting: 2 });
    const first = batcher.add(1, LATE);
    const second = batcher.add(2, LATE);
    await expect(batcher.add(3, LATE)).rejects.toMatchObject({ code: 'unavailable' });
    expect(batcher.waiting).toBe(2);
    last().commit();
    await settled();
    last().commit();
    expect(await Promise.all([first, second])).toEqual([10, 20]);
    expect(batcher.waiting).toBe(0);
  });

  test('one bad row fails alone: the others of its batch are written one by one', async () => {
    const { batcher, flights, last } = harness();
    const answers = [1, 2, 3, 4].map((row) => outcome(batcher.add(row, LATE)));
    last().commit();
    await settled();
    last().fail(badRow());
    await settled();
    last().commit();
    await settled();
    last().fail(badRow());
    await settled();
    last().commit();
    expect(await Promise.all(answers)).toEqual([10, 20, 'invalid input', 40]);
    expect(flights.map(({ rows }) => rows)).toEqual([[1], [2, 3, 4], [2], [3], [4]]);
    expect(batcher.failing_since_ms).toBeNull();
  });

  test('a row at fault is no sign that the store fails', async () => {
    const { batcher, clock, last } = harness();
    const answer = outcome(batcher.add(1, LATE));
    last().fail(badRow());
    expect(await answer).toBe('invalid input');
    await settled();
    clock.advance(5_000);
    expect(batcher.failing_since_ms).toBeNull();
  });

  test('a lost connection is tried again with back-off, in the same order, before what came later', async () => {
    const { batcher, clock, flights, last } = harness();
    const answers = [1, 2].map((row) => batcher.add(row, LATE));
    last().fail(down());
    await settled();
    expect(flights).toHaveLength(1);
    clock.advance(50);
    await settled();
    expect(last().rows).toEqual([1, 2]);
    last().fail(down());
    answers.push(batcher.add(3, LATE));
    await settled();
    clock.advance(99);
    await settled();
    expect(flights).toHaveLength(2);
    clock.advance(1);
    await settled();
    expect(last().rows).toEqual([1, 2, 3]);
    last().commit();
    expect(await Promise.all(answers)).toEqual([10, 20, 30]);
  });

  test('when the connection is lost while rows go one by one, those written are not written again', async () => {
    const { batcher, clock, flights, last } = harness();
    const answers = [1, 2, 3].map((row) => batcher.add(row, LATE));
    last().commit();
    await settled();
    last().fail(badRow());
    await settled();
    last().commit();
    await settled();
    last().fail(down());
    await settled();
    clock.advance(50);
    await settled();
    expect(flights.map(({ rows }) => rows)).toEqual([[1], [2, 3], [2], [3], [3]]);
    last().commit();
    expect(await Promise.all(answers)).toEqual([10, 20, 30]);
  });

  test('a row is refused at its deadline, queued or in flight, and the others wait on', async () => {
    const { batcher, clock, last } = harness();
    const inFlight = outcome(batcher.add(1, 1_000));
    const queued = outcome(batcher.add(2, 500));
    const patient = batcher.add(3, LATE);
    clock.advance(500);
    expect(await queued).toBe('The record was not committed in time.');
    clock.advance(500);
    expect(await inFlight).toBe('The record was not committed in time.');
    expect(batcher.waiting).toBe(1);
    last().fail(down());
    await settled();
    clock.advance(50);
    await settled();
    expect(last().rows).toEqual([3]);
    last().commit();
    expect(await patient).toBe(30);
  });

  test('tells since when the store fails, and stops telling with the first success', async () => {
    const { batcher, clock, last } = harness();
    expect(batcher.failing_since_ms).toBeNull();
    clock.advance(100);
    const answer = batcher.add(1, LATE);
    clock.advance(20);
    last().fail(down());
    await settled();
    expect(batcher.failing_since_ms).toBe(100);
    clock.advance(50);
    await settled();
    last().fail(down());
    await settled();
    expect(batcher.failing_since_ms).toBe(100);
    clock.advance(100);
    await settled();
    last().commit();
    await answer;
    await settled();
    expect(batcher.failing_since_ms).toBeNull();
  });

  test('a store that has vanished without an error counts as failing too', async () => {
    const { batcher, clock, last } = harness();
    const answer = batcher.add(1, LATE);
    clock.advance(499);
    expect(batcher.failing_since_ms).toBeNull();
    clock.advance(1);
    expect(batcher.failing_since_ms).toBe(0);
    last().commit();
    await answer;
    await settled();
    expect(batcher.failing_since_ms).toBeNull();
  });

  test('suspected by another, it counts as failing until the store answers, though no row waits', async () => {
    const { batcher, clock, pings, setUp } = harness();
    clock.advance(100);
    setUp(false);
    batcher.suspect();
    batcher.suspect();
    await settled();
    expect(batcher.failing_since_ms).toBe(100);
    clock.advance(1000);
    await settled();
    expect(batcher.failing_since_ms).toBe(100);
    expect(pings()).toBe(2);
    setUp(true);
    clock.advance(1000);
    await settled();
    expect(batcher.failing_since_ms).toBeNull();
    await batcher.close(clock.now_ms() + 15_000);
    batcher.suspect();
    expect(batcher.failing_since_ms).toBeNull();
  });

  test('with no row left to try, it finds out by itself that the store is back', async () => {
    const { batcher, clock, last, pings, setUp } = harness();
    setUp(false);
    const answer = outcome(batcher.add(1, 10));
    last().fail(down());
    await settled();
    clock.advance(10);
    expect(await answer).toBe('The record was not committed in time.');
    clock.advance(2_000);
    await settled();
    expect(pings()).toBeGreaterThan(0);
    expect(batcher.failing_since_ms).not.toBeNull();
    setUp(true);
    clock.advance(2_000);
    await settled();
    expect(batcher.failing_since_ms).toBeNull();
    expect(clock.pending).toBe(0);
  });

  test('closing waits for what was added, takes no more, and leaves no timer', async () => {
    const { batcher, clock, last } = harness();
    const answer = batcher.add(1, LATE);
    const closed = batcher.close(clock.now_ms() + 15_000);
    await expect(batcher.add(2, LATE)).rejects.toMatchObject({ code: 'unavailable' });
    last().commit();
    await closed;
    expect(await answer).toBe(10);
    expect(clock.pending).toBe(0);
  });

  test('closing gives up what the store does not take: a process that stops does not stay for it', async () => {
    const { batcher, clock, last, setUp } = harness();
    setUp(false);
    const answer = outcome(batcher.add(1, LATE));
    const closed = batcher.close(clock.now_ms() + 15_000);
    for (let second = 0; second < 16; second++) {
      last().fail(down());
      await settled();
      clock.advance(1_000);
      await settled();
    }
    last().fail(down());
    await closed;
    expect(await answer).toBe('The record was not committed in time.');
    expect(clock.pending).toBe(0);
  });

  test('reports every flush, its rows and whether it failed', async () => {
    const reports: unknown[] = [];
    const { batcher, clock, last } = harness({ flushed: (report) => void reports.push(report) });
    const answer = batcher.add(1, LATE);
    clock.advance(7);
    last().fail(down());
    await settled();
    clock.advance(50);
    await settled();
    last().commit();
    await answer;
    expect(reports).toEqual([
      { rows: 1, duration_ms: 7, failed: true },
      { rows: 1, duration_ms: 0, failed: false },
    ]);
  });
});
