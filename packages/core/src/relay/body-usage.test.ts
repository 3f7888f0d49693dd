import fc from 'fast-check';
import { expect, test } from 'vitest';
import { BodyUsage } from './body-usage.ts';

const usage = { prompt_tokens: 11, completion_tokens: 5, prompt_tokens_details: { cached_tokens: 2 } };
const read = { prompt_tokens: 11, completion_tokens: 5, cached_tokens: 2, estimated: false };

function feed(body: string, cuts: number[]) {
  const bytes = Buffer.from(body);
  const reader = new BodyUsage();
  let from = 0;
  for (const cut of [...cuts.map((place) => place % bytes.length).sort((a, b) => a - b), bytes.length]) {
    reader.push(bytes.subarray(from, cut));
    from = cut;
  }
  return reader.usage();
}

test('usage is found wherever it stands and however the body is cut', () => {
  const members = fc.constantFrom(
    '"choices":[{"message":{"content":"say \\"usage\\": {}"}}]',
    '"note":"usage"',
    '"x":{"usage":"none"}',
  );
  fc.assert(
    fc.property(fc.array(members), fc.array(members), fc.array(fc.nat(2000)), (before, after, cuts) => {
      const body = `{${[...before, `"usage" : ${JSON.stringify(usage)}`, ...after].join(', ')}}`;
      expect(feed(body, cuts)).toEqual(read);
    }),
  );
});

test('a count that no request can have counts as none', () => {
  for (const prompt_tokens of [2 ** 53 - 1, 1_000_000_001, -1, 1.5, '9'])
    expect(feed(JSON.stringify({ usage: { ...usage, prompt_tokens } }), [])?.prompt_tokens).toBe(0);
});

test('a body without usage, or with a broken one, gives none', () => {
  for (const body of [
    '{}',
    '{"usage":null}',
    '{"usage":{"prompt_tokens":',
    '{"usage":{]}',
    '{"a":"\\"usage\\""}',
  ]) {
    expect(feed(body, [3])).toBeUndefined();
  }
});

test('of a long body only the last mebibyte is kept', () => {
  const filler = 'x'.repeat(3_000_000);
  const cuts = Array.from({ length: 100 }, (_, index) => index * 30_000);
  expect(feed(`{"a":"${filler}","usage":${JSON.stringify(usage)}}`, cuts)).toEqual(read);
  expect(feed(`{"usage":${JSON.stringify(usage)},"a":"${filler}"}`, cuts)).toBeUndefined();
});
