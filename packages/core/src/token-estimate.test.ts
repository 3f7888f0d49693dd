import { describe, expect, it } from 'vitest';
import { estimateRequest, learnUsage, newTokenEstimator, requestSize } from './token-estimate.ts';

const usage = (prompt_tokens: number, completion_tokens: number, estimated = false) => ({
  prompt_tokens,
  completion_tokens,
  cached_tokens: 0,
  estimated,
});
const sizeOf = (fields: Record<string, unknown>, operation = 'chat') =>
  requestSize(fields, Buffer.byteLength(JSON.stringify(fields)), operation);

describe('the size of a request', () => {
  it('is a quarter of its bytes and as many tokens as the client asks for, in each answer', () => {
    expect(sizeOf({ messages: [{ role: 'user', content: 'x'.repeat(400) }], max_tokens: 10 })).toMatchObject({
      prompt_tokens: 115,
      answer_tokens: 10,
    });
    expect(sizeOf({ messages: [], max_tokens: 5, max_completion_tokens: 10, n: 3 }).answer_tokens).toBe(30);
    expect(
      sizeOf({ prompt: ['a', 'b'], max_tokens: 10, best_of: 4, n: 2 }, 'completions').answer_tokens,
    ).toBe(80);
    expect(sizeOf({ prompt: [1, 2, 3], max_tokens: 10 }, 'completions').answer_tokens).toBe(10);
  });

  it('has no bound where the client set none', () => {
    for (const bound of [undefined, null, 0, -1, 'many', Infinity])
      expect(sizeOf({ messages: [], max_tokens: bound }).answer_tokens).toBeNull();
    expect(sizeOf({ input: 'x' }, 'embeddings').answer_tokens).toBe(0);
  });

  it('counts tokens where tokens are sent', () => {
    expect(sizeOf({ input: Array.from({ length: 1000 }, () => 1) }, 'embeddings').prompt_tokens).toBe(1000);
    expect(sizeOf({ input: [[1, 2], [3]] }, 'embeddings').prompt_tokens).toBeLessThan(10);
  });

  it('does not take the bytes of an image for text', () => {
    const url = `data:image/png;base64,${'A'.repeat(1_000_000)}`;
    const content = [
      { type: 'text', text: 'What is it?' },
      { type: 'image_url', image_url: { url } },
    ];
    const { prompt_tokens } = sizeOf({ messages: [{ role: 'user', content }] });
    expect(prompt_tokens).toBeGreaterThan(1000);
    expect(prompt_tokens).toBeLessThan(1100);
  });
});

describe('an estimate', () => {
  const open = { prompt_tokens: 10, answer_tokens: null };

  it("follows the key's own answers, up at once and down slowly", () => {
    const estimator = newTokenEstimator();
    const first = estimateRequest(estimator, open);
    learnUsage(estimator, open, usage(10, 20));
    expect(estimateRequest(estimator, open)).toBeLessThan(first);
    learnUsage(estimator, open, usage(10, 9000));
    expect(estimateRequest(estimator, open)).toBeGreaterThanOrEqual(9010);
    for (let ended = 0; ended < 100; ended++) learnUsage(estimator, open, usage(10, 20));
    expect(estimateRequest(estimator, open)).toBeLessThan(40);
  });

  it('covers what prompts cost beyond their bytes', () => {
    const estimator = newTokenEstimator();
    learnUsage(estimator, { prompt_tokens: 10, answer_tokens: 5 }, usage(500, 5));
    expect(estimateRequest(estimator, { prompt_tokens: 10, answer_tokens: 5 })).toBe(505);
  });

  it('learns nothing from what is an estimate itself', () => {
    const estimator = newTokenEstimator();
    learnUsage(estimator, open, usage(10, 20, true));
    expect(estimator).toEqual(newTokenEstimator());
  });
});
