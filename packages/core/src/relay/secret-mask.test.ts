import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { MASK, newSecretMask } from './secret-mask.ts';

/** What comes out of these chunks, piece by piece. */
function through(secret: string, chunks: readonly string[]): string[] {
  const mask = newSecretMask(secret);
  return [...chunks.map((chunk) => mask.push(Buffer.from(chunk))), mask.rest()].map(String);
}

describe('a secret in an answer', () => {
  test('is masked wherever the chunks are cut, and nothing else is changed', () => {
    const letters = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), maxLength: 40 });
    const secrets = fc.string({ unit: fc.constantFrom('a', 'b'), minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(secrets, fc.array(letters, { maxLength: 8 }), (secret, chunks) => {
        expect(through(secret, chunks).join('')).toBe(chunks.join('').replaceAll(secret, MASK));
      }),
    );
  });

  test('holds back only what may be its beginning', () => {
    expect(through('sk-123', ['data: s\n\n', 'data: sk-1', '24\n\nsk', '-123', ' sk-'])).toEqual([
      'data: s\n\n',
      'data: ',
      'sk-124\n\n',
      MASK,
      ' ',
      'sk-',
    ]);
  });
});
