import { describe, expect, test } from 'vitest';
import { systemRandom } from '../clock.ts';
import { createSealer } from './sealer.ts';

const KEY = 'k'.repeat(40);
const sealer = createSealer(KEY, systemRandom);

describe('a sealed secret', () => {
  test('opens under its key for what it belongs to, and shows nothing of itself', () => {
    const sealed = sealer.seal('sk-ünï', 'prv_1');
    expect(sealed).toMatch(/^v1\.[\w-]{16}\.[\w-]+$/);
    expect(Buffer.from(sealed.split('.')[2]!, 'base64url').toString('latin1')).not.toContain('sk-');
    expect(createSealer(KEY, systemRandom).open(sealed, 'prv_1')).toBe('sk-ünï');
  });

  test('is another one each time', () => {
    expect(sealer.seal('same', 'prv_1')).not.toBe(sealer.seal('same', 'prv_1'));
  });

  test('does not open in another row, under another key, or changed anywhere', () => {
    const sealed = sealer.seal('secret', 'prv_1');
    expect(attempt(sealed, 'prv_2')).toBe('refused');
    expect(attempt(sealed, 'prv_1', createSealer('o'.repeat(40), systemRandom))).toBe('refused');
    expect(attempt(sealed)).toBe('secret');
    for (let at = 0; at < sealed.length; at++) {
      const other = sealed[at] === 'A' ? 'Q' : 'A';
      const changed = sealed.slice(0, at) + other + sealed.slice(at + 1);
      // The last character of base64url may have bits that stand for nothing: then nothing was changed.
      if (sameBytes(changed, sealed)) continue;
      expect(attempt(changed)).toBe('refused');
    }
    // Cut short: a tag of fewer bytes is guessed more easily.
    const [version, nonce, rest] = sealed.split('.');
    const short = Buffer.from(rest!, 'base64url').subarray(0, -4).toString('base64url');
    expect(attempt(`${version}.${nonce}.${short}`)).toBe('refused');
    for (const nonsense of ['', 'v1', 'v1..', 'v2.a.b', '...']) {
      expect(attempt(nonsense)).toBe('refused');
    }
  });
});

function attempt(sealed: string, bound_to = 'prv_1', by = sealer): string {
  try {
    return by.open(sealed, bound_to);
  } catch {
    return 'refused';
  }
}

function sameBytes(a: string, b: string): boolean {
  const bytes = (sealed: string) =>
    sealed
      .split('.')
      .map((part, index) => (index === 0 ? part : Buffer.from(part, 'base64url').toString('hex')));
  return JSON.stringify(bytes(a)) === JSON.stringify(bytes(b));
}
