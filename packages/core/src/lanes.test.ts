import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type Waiting, newLanes } from './lanes.ts';

const job = (id: string, order_key: number, lane = 'l', capability = 'm'): Waiting => ({
  id,
  order_key,
  lane,
  capability,
});

describe('lanes', () => {
  it('serve the smallest order key first, ties by age', () => {
    const lanes = newLanes();
    const jobs = [job('c', 2), job('b', 1), job('a', 1)];
    for (const one of jobs) lanes.push(one);
    const lane = lanes.byCapability.get('m')!.lanes.get('l')!;
    const order: string[] = [];
    for (let head = lanes.head(lane); head !== undefined; head = lanes.head(lane)) {
      order.push(head.id);
      lanes.remove(head);
    }
    expect(order).toEqual(['a', 'b', 'c']);
  });

  it('are bounded per capability, except for a job that was in already', () => {
    const lanes = newLanes(2);
    expect(lanes.push(job('a', 1))).toBe(true);
    expect(lanes.push(job('b', 1, 'other'))).toBe(true);
    expect(lanes.push(job('c', 1))).toBe(false);
    expect(lanes.push(job('c', 1), true)).toBe(true);
    expect(lanes.push(job('d', 1, 'l', 'another model'))).toBe(true);
  });

  it('agree with a sorted list under any pushes and removals', () => {
    const step = fc.record({ id: fc.nat(20), key: fc.nat(10), remove: fc.boolean() });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 80 }), (steps) => {
        const lanes = newLanes();
        const list = new Map<number, Waiting>();
        for (const { id, key, remove } of steps) {
          const known = list.get(id);
          if (remove && known !== undefined) {
            expect(lanes.remove(known)).toBe(true);
            list.delete(id);
          } else if (!remove && known === undefined) {
            const one = job(String(id).padStart(2, '0'), key);
            lanes.push(one);
            list.set(id, one);
          }
          const sorted = [...list.values()].sort(
            (a, b) => a.order_key - b.order_key || (a.id < b.id ? -1 : 1),
          );
          const lane = lanes.byCapability.get('m')?.lanes.get('l');
          expect(lane === undefined ? undefined : lanes.head(lane)).toBe(sorted[0]);
          expect(lanes.count).toBe(list.size);
          for (const [index, one] of sorted.entries()) expect(lanes.position(one)).toBe(index);
        }
      }),
    );
  });
});
