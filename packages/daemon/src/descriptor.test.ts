import { MESSAGE_MAX_BYTES, readDescriptor } from '@flotilla/protocol';
import { describe, expect, test } from 'vitest';
import type { BackendState } from './backends/backend-set.ts';
import { DESCRIPTOR_MAX_BYTES, HEALTH_MAX_BYTES, SLOTS_MOST, describeNode } from './descriptor.ts';
import { INVENTORY_MAX_BYTES } from './link/attempts.ts';

function backend(id: string, models: number): BackendState {
  const ids = Array.from(
    { length: models },
    (_, n) => `${id}/a-model-of-some-name-${String(n).padStart(5, '0')}`,
  );
  return {
    id,
    kind: 'openai',
    models: ids.map((model) => ({ id: model, operations: ['chat', 'completions'], loaded: true })),
    health: {
      id,
      health: 'healthy',
      models: ids.map((model) => ({ id: model, health: 'down', reason: 'x'.repeat(1000) })),
    },
    capacity: 4,
    capacity_from: 'default',
    target: { id, pool: id },
  } as unknown as BackendState;
}

const node = (...backends: BackendState[]) =>
  describeNode({ name: 'box', labels: {}, version: '1', backends });

describe('what a node says of itself', () => {
  test('is cut to what a registration can carry, longest list first, and says so', () => {
    const { descriptor, health, cut } = node(backend('many', 5000), backend('few', 3));
    expect(Buffer.byteLength(JSON.stringify(descriptor))).toBeLessThanOrEqual(DESCRIPTOR_MAX_BYTES);
    expect(Buffer.byteLength(JSON.stringify(health))).toBeLessThanOrEqual(HEALTH_MAX_BYTES);
    expect(descriptor.backends[0]!.models.length).toBeGreaterThan(50);
    expect(descriptor.backends[1]!.models).toHaveLength(3);
    expect(cut).toEqual([
      expect.stringMatching(/^many lists 5000 models; only the first \d+ by name are offered/),
    ]);
    expect(readDescriptor(descriptor, 'box').warnings).toEqual([]);
  });

  test('is whole, with every reason, where it fits', () => {
    const { descriptor, health, cut } = node(backend('some', 20));
    expect(cut).toEqual([]);
    expect(descriptor.backends[0]!.models).toHaveLength(20);
    expect(health[0]!.models).toHaveLength(20);
  });

  test('offers the same models however many of them are ill: reasons go first', () => {
    const ill = node(backend('some', 250));
    const well = backend('some', 250);
    const { descriptor } = node({ ...well, health: { ...well.health, models: [] } });
    expect(ill.descriptor).toEqual(descriptor);
    expect(ill.health[0]!.models).toHaveLength(descriptor.backends[0]!.models.length);
    expect(ill.health[0]!.models[0]).toEqual({ id: expect.any(String), health: 'down' });
  });

  test('offers no more slots than a node can hold attempts, each backend its share, and says so', () => {
    const { descriptor, cut } = node(
      { ...backend('big', 1), capacity: 1500 },
      { ...backend('small', 1), capacity: 36 },
    );
    expect(descriptor.pools.map(({ capacity }) => capacity)).toEqual([500, 12]);
    expect(cut).toEqual([expect.stringContaining('1536 slots')]);
    const shares = (...slots: number[]) =>
      node(...slots.map((capacity, at) => ({ ...backend(`b${at}`, 1), capacity }))).descriptor.pools.map(
        ({ capacity }) => capacity,
      );
    // None is left without any, and none gets what it has not.
    expect(shares(1024, 1, 0)).toEqual([511, 1, 0]);
    expect(node({ ...backend('big', 1), capacity: SLOTS_MOST }).cut).toEqual([]);
  });

  test('leaves room for the inventory beside it', () => {
    const rest = 4096;
    expect(DESCRIPTOR_MAX_BYTES + HEALTH_MAX_BYTES + INVENTORY_MAX_BYTES + rest).toBeLessThanOrEqual(
      MESSAGE_MAX_BYTES,
    );
  });
});
