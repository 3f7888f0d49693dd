import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { LeasesDigest } from './leases-digest.ts';

const pair = fc.tuple(fc.string({ minLength: 1, maxLength: 30 }), fc.integer({ min: 1, max: 5 }));
const digestOf = (pairs: [string, number][]) => {
  const digest = new LeasesDigest();
  for (const [job, attempt] of pairs) digest.add(job, attempt);
  return digest.value;
};
const key = ([job, attempt]: [string, number]) => `${attempt} ${job}`;

describe('leases digest', () => {
  test('is the same for the same set in any order and after any detour', () => {
    fc.assert(
      fc.property(
        fc.uniqueArray(pair, { selector: key }),
        fc.array(pair),
        fc.func(fc.nat()),
        (pairs, detour, order) => {
          const digest = new LeasesDigest();
          for (const [job, attempt] of detour) digest.add(job, attempt);
          for (const [job, attempt] of pairs) digest.add(job, attempt);
          for (const [job, attempt] of detour) digest.remove(job, attempt);
          const shuffled = [...pairs].sort((a, b) => order(a) - order(b));
          expect(digest.value).toBe(digestOf(shuffled));
          expect(digest.count).toBe(pairs.length);
        },
      ),
    );
  });

  test('differs for different sets', () => {
    const sets = fc.uniqueArray(pair, { selector: key, maxLength: 20 });
    fc.assert(
      fc.property(sets, sets, (one, other) => {
        const same = one.map(key).toSorted().join() === other.map(key).toSorted().join();
        expect(digestOf(one) === digestOf(other)).toBe(same);
      }),
    );
    const all = new Set<string>();
    for (let job = 0; job < 20_000; job++) {
      for (const attempt of [1, 2]) all.add(digestOf([[`job_01J${job}`, attempt]]));
    }
    expect(all.size).toBe(40_000);
  });

  test('an empty digest is told from one that was cleared of nothing else', () => {
    const digest = new LeasesDigest();
    const empty = digest.value;
    digest.add('job_a', 1);
    expect(digest.value).not.toBe(empty);
    digest.clear();
    expect(digest.value).toBe(empty);
    expect(empty.length).toBeLessThanOrEqual(64);
  });
});
