import { describe, expect, test } from 'vitest';
import { INVARIANTS } from './invariants.ts';
import { PLANTED_BUGS } from './planted-bugs.ts';
import { World } from './world.ts';

/** Within so many worlds each is found. */
const SEEDS_MOST = 150;

/** It computes and never waits: on a busy machine for as long as that takes. */
describe('the simulator finds', { timeout: 300_000 }, () => {
  test.each(PLANTED_BUGS)('$name ($breaks)', async ({ bug, breaks, trouble }) => {
    const found: string[] = [];
    for (let seed = 1; seed <= SEEDS_MOST && found.at(-1) !== breaks; seed++) {
      const { violation } = await new World({ seed, bug, trouble }).run();
      if (violation !== null) found.push(violation.invariant);
    }
    expect(found.at(-1)).toBe(breaks);
  });

  test('one for each invariant at least', () => {
    expect(new Set(PLANTED_BUGS.map(({ breaks }) => breaks))).toEqual(new Set(Object.keys(INVARIANTS)));
  });
});
