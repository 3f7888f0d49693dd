import { ManualClock } from '@flotilla/core/testing';
import { expect, test } from 'vitest';
import { memoryLog } from '../testing/memory-log.ts';
import { latestWriter } from './latest-writer.ts';

const settled = () => new Promise<void>((done) => void setImmediate(done));

function setup() {
  const clock = new ManualClock();
  const log = memoryLog();
  const written: string[][] = [];
  const store = { up: true };
  const writer = latestWriter<{ id: string; state: number }>(
    (rows) => {
      written.push(rows.map(({ id, state }) => `${id}${state}`));
      return store.up ? Promise.resolve() : Promise.reject(new Error('no store'));
    },
    clock,
    log,
    'rows',
  );
  return { clock, log, written, store, writer };
}

test('what is put while a write is in flight goes in the next one, the latest of each id', async () => {
  const { written, writer } = setup();
  for (const [id, state] of [
    ['a', 1],
    ['a', 2],
    ['b', 1],
    ['a', 3],
  ] as const)
    writer.put({ id, state });
  await settled();
  expect(written).toEqual([['a1'], ['a3', 'b1']]);
});

test('a failed write is tried again each second until it succeeds, and told once', async () => {
  const { clock, log, written, store, writer } = setup();
  store.up = false;
  writer.put({ id: 'a', state: 1 });
  await settled();
  writer.put({ id: 'a', state: 2 });
  clock.advance(1000);
  await settled();
  store.up = true;
  clock.advance(1000);
  await settled();
  expect(written).toEqual([['a1'], ['a2'], ['a2']]);
  expect(log.lines).toHaveLength(1);
  expect(clock.pending).toBe(0);
});

test.each([true, false])(
  'closed, it tries once more, and leaves nothing behind (the store is up: %s)',
  async (up) => {
    const { clock, written, store, writer } = setup();
    store.up = false;
    writer.put({ id: 'a', state: 1 });
    await settled();
    store.up = up;
    await writer.close();
    writer.put({ id: 'a', state: 2 });
    clock.advance(10_000);
    await settled();
    expect(written).toEqual([['a1'], ['a1']]);
    expect(clock.pending).toBe(0);
  },
);
