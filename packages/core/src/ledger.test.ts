import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  holdAnyway,
  newLedger,
  promise,
  release,
  releaseAll,
  reserve,
  resizePools,
  withdrawPromise,
} from './ledger.ts';

const pool = (capacity: number, id = 'p') => ({ id, capacity, capacity_from: 'config' });

describe('the slot ledger', () => {
  it('gives no slot away twice', () => {
    const ledger = newLedger();
    resizePools(ledger, [pool(1)]);
    expect(reserve(ledger, 'p', 'j', 1)).toBe(true);
    expect(reserve(ledger, 'p', 'j', 1)).toBe(false);
    expect(reserve(ledger, 'p', 'k', 1)).toBe(false);
    expect(release(ledger, 'j', 1)?.reserved).toBe(0);
    expect(release(ledger, 'j', 1)).toBeUndefined();
  });

  it('counts what is promised with what is held, also when all that is held is forgotten', () => {
    const ledger = newLedger();
    resizePools(ledger, [pool(2)]);
    const own = ledger.pools.get('p')!;
    promise(ledger, own);
    reserve(ledger, 'p', 'j', 1);
    expect([own.reserved, reserve(ledger, 'p', 'k', 1)]).toEqual([2, false]);
    releaseAll(ledger);
    expect(own.reserved).toBe(1);
    withdrawPromise(ledger, own);
    expect(own.reserved).toBe(0);
  });

  it('keeps the slots of a pool that shrank or vanished until they are released', () => {
    const ledger = newLedger();
    resizePools(ledger, [pool(2)]);
    reserve(ledger, 'p', 'j', 1);
    resizePools(ledger, []);
    expect(ledger.pools.get('p')).toMatchObject({ capacity: 0, reserved: 1 });
    expect(reserve(ledger, 'p', 'k', 1)).toBe(false);
  });

  it('never exceeds its capacity and returns to zero, whatever the order of events', () => {
    const step = fc.tuple(fc.constantFrom('reserve', 'release', 'resize', 'hold'), fc.nat(9), fc.nat(4));
    fc.assert(
      fc.property(fc.array(step, { maxLength: 100 }), (steps) => {
        const turns: boolean[] = [];
        const ledger = newLedger((turned) => turns.push(turned.reserved >= turned.capacity));
        const held = new Set<number>();
        for (const [what, job, size] of steps) {
          const before = ledger.pools.get('p')?.reserved ?? 0;
          if (what === 'resize') resizePools(ledger, [pool(size)]);
          else if (what === 'release') {
            expect(release(ledger, `j${job}`, 1) !== undefined).toBe(held.delete(job));
          } else if (what === 'hold') {
            holdAnyway(ledger, 'p', `j${job}`, 1);
            held.add(job);
          } else if (reserve(ledger, 'p', `j${job}`, 1)) {
            expect(before).toBeLessThan(ledger.pools.get('p')!.capacity);
            held.add(job);
          }
          expect(ledger.holders.size).toBe(held.size);
          expect(ledger.pools.get('p')?.reserved ?? 0).toBe(held.size);
          const now = ledger.pools.get('p');
          if (now !== undefined) expect(turns.at(-1) ?? true).toBe(now.reserved >= now.capacity);
        }
        // It is told of turns alone: full, free, full, …
        expect(turns.every((full, n) => full === (n % 2 === 1))).toBe(true);
        for (const job of held) release(ledger, `j${job}`, 1);
        expect(ledger.holders.size).toBe(0);
        releaseAll(ledger);
        expect(ledger.pools.get('p')?.reserved ?? 0).toBe(0);
      }),
    );
  });
});
