import { describe, expect, it } from 'vitest';
import { BRAKE_MAX_MS, RELEASED, stepBrake } from './brake.ts';

describe('the brake', () => {
  it('holds when more than half of at least five nodes are suspect', () => {
    expect(stepBrake(RELEASED, 3, 5, 10).held_since_ms).toBe(10);
    expect(stepBrake(RELEASED, 3, 6, 10)).toBe(RELEASED);
    expect(stepBrake(RELEASED, 4, 4, 10)).toBe(RELEASED);
  });

  it('lets go when fewer are suspect', () => {
    expect(stepBrake(stepBrake(RELEASED, 5, 5, 0), 2, 5, 100)).toEqual(RELEASED);
  });

  it('holds for a minute at most, and not again before the fleet has recovered', () => {
    const held = stepBrake(RELEASED, 5, 5, 0);
    const spent = stepBrake(held, 5, 5, BRAKE_MAX_MS);
    expect(spent.held_since_ms).toBeNull();
    expect(stepBrake(spent, 5, 5, BRAKE_MAX_MS + 1).held_since_ms).toBeNull();
    const recovered = stepBrake(spent, 1, 5, BRAKE_MAX_MS + 2);
    expect(stepBrake(recovered, 5, 5, BRAKE_MAX_MS + 3).held_since_ms).toBe(BRAKE_MAX_MS + 3);
  });
});
