import type { NodeState } from '@flotilla/protocol';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { newModelSpots } from './model-spots.ts';
import { type Spot, closedBy } from './spot.ts';

const STATES: NodeState[] = ['online', 'suspect', 'offline', 'pending', 'revoked'];

/** A spot whose parts a test changes in place, as the roster does. */
function movingSpot(id: string) {
  const node = {
    id,
    state: 'online' as NodeState,
    stalled: false,
    cordoned: false,
    draining: false,
    labels: {} as Record<string, string>,
    allowed_models: null,
    failures: 0,
    unfenced: false,
  };
  const slots = { reserved: 0, capacity: 2 };
  return {
    node,
    backend: 'b',
    operations: [],
    loaded: true,
    backend_health: 'healthy',
    model_health: 'healthy',
    slots,
  } as Spot & {
    node: typeof node;
    slots: typeof slots;
    backend_health: Spot['backend_health'];
    loaded: boolean;
  };
}

describe('the spots of a model', () => {
  it('stand where their state says, whatever came before', () => {
    const change = fc.record({
      which: fc.nat(7),
      what: fc.constantFrom('state', 'reserve', 'health', 'cordon', 'label', 'ask', 'remove', 'add'),
      value: fc.nat(4),
    });
    fc.assert(
      fc.property(fc.array(change, { maxLength: 200 }), (changes) => {
        const spots = newModelSpots<Spot>();
        const all = Array.from({ length: 8 }, (_, n) => movingSpot(`n${n % 5}`));
        const within = new Set<Spot>();
        for (const { which, what, value } of changes) {
          const spot = all[which]!;
          if (what === 'add') {
            if (!within.has(spot)) spots.add(spot);
            within.add(spot);
          } else if (what === 'remove') {
            spots.remove(spot.node.id);
            for (const other of all) if (other.node.id === spot.node.id) within.delete(other);
          } else {
            if (what === 'state') spot.node.state = STATES[value]!;
            if (what === 'reserve') spot.slots.reserved = value;
            if (what === 'label') spot.node.labels = { zone: String(value % 2) };
            if (what === 'ask') spots.labelled({ zone: String(value % 2) });
            if (what === 'cordon') spot.node.cordoned = value > 2;
            if (what === 'health')
              spot.backend_health = (['healthy', 'degraded', 'down'] as const)[value % 3]!;
            // What is changed of a node is told for each of its spots.
            for (const other of all) {
              other.node.labels = other.node.id === spot.node.id ? spot.node.labels : other.node.labels;
              if (within.has(other) && (other === spot || other.node.id === spot.node.id)) spots.moved(other);
            }
          }
        }
        const open = [...within].filter((spot) => closedBy(spot) === null);
        const patient = [...within].filter((spot) => {
          const closed = closedBy(spot);
          const away = closed === 'suspect' || closed === 'pending';
          return closed === 'full' || (away && !spot.node.cordoned);
        });
        expect(new Set(spots.open.flat())).toEqual(new Set(open));
        expect(spots.open.flat()).toHaveLength(open.length);
        expect(new Set(spots.patient)).toEqual(new Set(patient));
        expect(new Set(spots.all())).toEqual(within);
        expect(spots.size).toBe(within.size);
        for (const zone of ['0', '1']) {
          const labelled = spots.labelled({ zone });
          const own = [...within].filter((spot) => spot.node.labels['zone'] === zone);
          expect(new Set(labelled.all())).toEqual(new Set(own));
          expect(new Set(labelled.open.flat())).toEqual(
            new Set(own.filter((spot) => closedBy(spot) === null)),
          );
        }
        for (const spot of within) expect(spots.of(spot.node.id)).toContain(spot);
        expect(spots.open[0]!.every((spot) => spot.backend_health === 'healthy')).toBe(true);
        expect(spots.open[1]!.every((spot) => spot.backend_health === 'degraded')).toBe(true);
      }),
    );
  });
});
