import { describe, expect, it } from 'vitest';
import { ChurnMap } from './churn-map.ts';

describe('a churn map', () => {
  it('is a map', () => {
    const map = new ChurnMap<string, number>().set('a', 1).set('b', 2).set('a', 3);
    expect([map.size, map.get('a'), map.get('c'), map.has('b'), map.has('c')]).toEqual([
      2,
      3,
      undefined,
      true,
      false,
    ]);
    expect([[...map.keys()], [...map.values()]]).toEqual([
      ['a', 'b'],
      [3, 2],
    ]);
    expect([map.delete('a'), map.delete('a'), map.has('a'), map.size]).toEqual([true, false, false, 1]);
    map.clear();
    expect([map.size, [...map.values()]]).toEqual([0, []]);
  });

  it('may lose entries while it is walked', () => {
    const map = new ChurnMap<number, number>().set(1, 1).set(2, 2).set(3, 3);
    const seen: number[] = [];
    for (const value of map.values()) {
      seen.push(value);
      map.delete(value);
      map.delete(2);
    }
    expect(seen).toEqual([1, 3]);
  });
});
