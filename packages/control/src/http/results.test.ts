import { EventEmitter } from 'node:events';
import type { ServerResponse } from 'node:http';
import { ManualClock } from '@flotilla/core/testing';
import { expect, onTestFinished, test, vi } from 'vitest';
import { createBodyMemory } from '../body-memory.ts';
import { createResults } from './results.ts';

function setup(text: string, budget_bytes: number) {
  const clock = new ManualClock();
  const memory = createBodyMemory(budget_bytes);
  const loadResult = vi.fn<() => Promise<string>>(() => Promise.resolve(text));
  const measureResult = () => Promise.resolve({ result_bytes: text.length, erase_at: 7 });
  const results = createResults({
    store: { measureResult, loadResult },
    memory,
    clock,
    stall_ms: 1000,
  });
  const answer = () => new EventEmitter() as ServerResponse;
  return { clock, memory, results, loadResult, answer };
}

test('a result counts until its answer is over, and one without room is not loaded', async () => {
  const { memory, results, loadResult, answer } = setup('x'.repeat(100), 300);
  const first = answer();
  expect(await results.load('a', first)).toEqual({ result: 'x'.repeat(100), erase_at: 7 });
  expect(memory.held_bytes).toBe(200);
  await expect(results.load('a', answer())).rejects.toMatchObject({ code: 'unavailable' });
  expect(loadResult).toHaveBeenCalledTimes(1);
  first.emit('close');
  expect(memory.held_bytes).toBe(0);
});

test('a success is known to be JSON without a look at it; a refusal is looked at once', () => {
  const { results } = setup('', 300);
  const parse = vi.spyOn(JSON, 'parse');
  onTestFinished(() => parse.mockRestore());
  expect(results.isJson({ id: 'a', state: 'succeeded' }, '{}')).toBe(true);
  expect(parse).not.toHaveBeenCalled();
  for (const _ of [1, 2]) expect(results.isJson({ id: 'b', state: 'failed' }, '<html>')).toBe(false);
  expect(parse).toHaveBeenCalledTimes(1);
});

test('who takes nothing of it is cut', async () => {
  const { clock, results, answer } = setup('x'.repeat(100), 300);
  const destroy = vi.fn<() => void>();
  const stalled = Object.assign(answer(), { writableNeedDrain: true, socket: { bytesWritten: 5 }, destroy });
  await results.load('a', stalled as unknown as ServerResponse);
  clock.advance(2000);
  expect(destroy).toHaveBeenCalled();
});

test('one that is larger than all of the budget is given alone', async () => {
  const { memory, results, answer } = setup('x'.repeat(100), 50);
  const only = answer();
  expect((await results.load('a', only)).result).toHaveLength(100);
  only.emit('close');
  expect(memory.held_bytes).toBe(0);
});
