import { describe, expect, test } from 'vitest';
import { createKeys, jobText, withKey, wordsOf } from './job-text.ts';

describe('the text of a job', () => {
  test('is what was written where that is a whole job', () => {
    const written = '{"model":"m", "request":{"seed":12345678901234567890}}';
    expect(jobText(` ${written}\n`, {})).toBe(written);
  });

  test('has the body of a request in it as it was written, and what flags say around it', () => {
    const body = '{"model": "m","seed":12345678901234567890, "top_p":0.10}';
    expect(jobText(body, { priority: 2 })).toBe(`{"priority":2,"model":"m","request":${body}}`);
    expect(jobText('{"messages":[]}', { model: 'x' })).toBe('{"model":"x","request":{"messages":[]}}');
  });

  test.each([
    ['', {}, 'not JSON'],
    ['[]', {}, 'no JSON object'],
    ['{"messages":[]}', {}, 'No model'],
    ['{"model":"m","request":{}}', { priority: 1 }, 'write its `priority` into it'],
  ])('%j is refused: %j', (written, flags, says) => {
    expect(() => jobText(written, flags)).toThrow(says);
  });
});

test('equal jobs of a file have different keys, and the same ones the next time', () => {
  const keys = () => ['{"a":1}', '{"a":1}', '{"b":1}'].map(createKeys('night-'));
  const first = keys();
  expect(new Set(first).size).toBe(3);
  expect(first[0]).toMatch(/^night-[0-9a-f]{40}-1$/);
  expect(keys()).toEqual(first);
  expect(JSON.parse(withKey('{"a":1}', first[0]!))).toEqual({ a: 1, idempotency_key: first[0] });
});

test('the words of an answer are those of a chat or a completion', () => {
  expect(wordsOf('{"choices":[{"message":{"content":"Hi"}}]}')).toBe('Hi');
  expect(wordsOf('{"choices":[{"text":"Hi"}]}')).toBe('Hi');
  expect(wordsOf('{"data":[]}')).toBeUndefined();
  expect(wordsOf('no json')).toBeUndefined();
});
