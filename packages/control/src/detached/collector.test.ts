import { expect, test } from 'vitest';
import { createBodyMemory } from '../body-memory.ts';
import type { Attempt } from '../dispatch/attempt.ts';
import { Collector } from './collector.ts';

const usage = { prompt_tokens: 0, completion_tokens: 0, cached_tokens: 0, estimated: true };

test.each([
  [200, '{"a":1}', null],
  [200, '<html>', 'the answer is not JSON'],
  // No daemon of ours calls it an answer; whoever does makes a success of it, and readers are told that those are JSON.
  [304, '', 'the answer is not JSON'],
  // Kept as it is, as the result of a job that has failed.
  [400, '<html>', null],
])('of an answer with %s and %j: %s', (status, text, fault) => {
  const collector = new Collector({
    limit_bytes: 1000,
    request_bytes: 0,
    memory: createBodyMemory(1000),
    started() {},
    credit() {},
    overflowed() {},
  });
  collector.body({} as Attempt, Buffer.from(text));
  expect(collector.fault({ status, length: text.length, usage })).toBe(fault);
});

test('a job is in the budget of bodies with its request and its answer, until it is let go of, once', () => {
  const memory = createBodyMemory(1000);
  const collector = new Collector({
    limit_bytes: 1000,
    request_bytes: 300,
    memory,
    started() {},
    credit() {},
    overflowed() {},
  });
  collector.body({} as Attempt, Buffer.alloc(50));
  expect(memory.held_bytes).toBe(350);
  // The node begins anew.
  collector.discard();
  expect(memory.held_bytes).toBe(300);
  collector.body({} as Attempt, Buffer.alloc(20));
  collector.close();
  collector.close();
  expect(memory.held_bytes).toBe(0);
});
