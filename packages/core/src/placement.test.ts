import { describe, expect, it } from 'vitest';
import { newModelSpots } from './model-spots.ts';
import {
  DRAWS,
  type PlacementRequest,
  matchesModel,
  place,
  placeInOrder,
  refusal,
  servedElsewhereInOrder,
} from './placement.ts';
import type { PlacementNode, Spot } from './spot.ts';

const node = (id: string, over: Partial<PlacementNode> = {}): PlacementNode => ({
  id,
  state: 'online',
  stalled: false,
  cordoned: false,
  draining: false,
  labels: {},
  allowed_models: null,
  failures: 0,
  unfenced: false,
  ...over,
});
const spot = (on: PlacementNode, over: Partial<Spot> = {}): Spot => ({
  node: on,
  backend: 'b',
  operations: ['chat'],
  loaded: true,
  backend_health: 'healthy',
  model_health: 'healthy',
  slots: { reserved: 0, capacity: 4 },
  ...over,
});
const request = (over: Partial<PlacementRequest> = {}): PlacementRequest => ({
  model: 'm',
  operation: 'chat',
  labels: {},
  pin: null,
  avoid: new Set(),
  refused_by: new Set(),
  affinity: null,
  ...over,
});
const indexOf = (spots: Spot[]) => {
  const index = newModelSpots<Spot>();
  for (const each of spots) index.add(each);
  return index;
};
const chosen = (asked: PlacementRequest, spots: Spot[]) => {
  const placement = place(asked, indexOf(spots), () => 0.5);
  return placement.kind === 'placed' ? placement.spot.node.id : placement.kind;
};

describe('the placement filter', () => {
  it.each([
    ['pinned_elsewhere', request({ pin: 'z' }), spot(node('a'))],
    ['refused', request({ refused_by: new Set(['a']) }), spot(node('a'))],
    ['operation', request({ operation: 'embeddings' }), spot(node('a'))],
    ['not_allowed', request(), spot(node('a', { allowed_models: ['other'] }))],
    ['labels', request({ labels: { zone: 'x' } }), spot(node('a', { labels: { zone: 'y' } }))],
    ['unfenced', request({ fenced: true }), spot(node('a', { unfenced: true }))],
    ['journal_down', request({ fenced: true }), spot(node('a', { journal_down: true }))],
    [null, request(), spot(node('a', { journal_down: true }))],
    ['offline', request(), spot(node('a', { state: 'offline' }))],
    ['suspect', request(), spot(node('a', { state: 'suspect' }))],
    ['pending', request(), spot(node('a', { state: 'pending' }))],
    ['revoked', request(), spot(node('a', { state: 'revoked' }))],
    ['draining', request(), spot(node('a', { draining: true }))],
    ['cordoned', request(), spot(node('a', { cordoned: true }))],
    ['stalled', request(), spot(node('a', { stalled: true }))],
    ['backend_down', request(), spot(node('a'), { backend_health: 'down' })],
    ['model_down', request(), spot(node('a'), { model_health: 'down' })],
    ['no_slots', request(), spot(node('a'), { slots: { reserved: 0, capacity: 0 } })],
    ['full', request(), spot(node('a'), { slots: { reserved: 4, capacity: 4 } })],
    [null, request(), spot(node('a'))],
  ])('refuses as %s', (reason, asked, where) => {
    expect(refusal(asked, where)).toBe(reason);
  });
});

describe('placement', () => {
  it('prefers the affine node while it is not hot', () => {
    const spots = [spot(node('a')), spot(node('b'), { slots: { reserved: 2, capacity: 4 } })];
    expect(chosen(request({ affinity: 'b' }), spots)).toBe('b');
    spots[1] = spot(node('b'), { slots: { reserved: 3, capacity: 4 } });
    expect(chosen(request({ affinity: 'b' }), spots)).toBe('a');
  });

  it('prefers a loaded model, then the lower load, then fewer failures', () => {
    expect(
      chosen(request(), [
        spot(node('a'), { loaded: false }),
        spot(node('b'), { slots: { reserved: 3, capacity: 4 } }),
      ]),
    ).toBe('b');
    expect(
      chosen(request(), [spot(node('a'), { slots: { reserved: 1, capacity: 4 } }), spot(node('b'))]),
    ).toBe('b');
    expect(chosen(request(), [spot(node('a', { failures: 3 })), spot(node('b'))])).toBe('b');
  });

  it('waits for a full node rather than ask one that has failed the job', () => {
    const full = spot(node('b'), { slots: { reserved: 4, capacity: 4 } });
    expect(chosen(request({ avoid: new Set(['a']) }), [spot(node('a')), full])).toBe('wait');
    expect(chosen(request({ avoid: new Set(['a']) }), [spot(node('a'))])).toBe('a');
    // Of two that have both failed it, the free one: nothing is gained by waiting for the other.
    expect(chosen(request({ avoid: new Set(['a', 'b']) }), [spot(node('a')), full])).toBe('a');
  });

  it('waits where somebody may come back, and says nobody where nobody can', () => {
    expect(chosen(request(), [spot(node('a', { state: 'suspect' }))])).toBe('wait');
    expect(chosen(request(), [spot(node('a'), { backend_health: 'down' })])).toBe('nobody');
    expect(chosen(request(), [])).toBe('nobody');
  });

  it('gives detached work to a node that can write it down, and waits for one rather than for one that cannot', () => {
    const detached = request({ fenced: true });
    const unable = spot(node('a', { journal_down: true }));
    expect(chosen(detached, [unable, spot(node('b'), { slots: { reserved: 3, capacity: 4 } })])).toBe('b');
    expect(chosen(detached, [unable, spot(node('b'), { slots: { reserved: 4, capacity: 4 } })])).toBe('wait');
    expect(chosen(detached, [unable])).toBe('nobody');
    expect(chosen(request(), [unable])).toBe('a');
    // Nor is it somebody else who could serve what another has failed.
    const tier = { model: 'm', labels: {}, spots: indexOf([unable, spot(node('b'))]) };
    expect(servedElsewhereInOrder(detached, [tier], 'b')).toBe(false);
  });

  it('spreads equal nodes at random', () => {
    const spots = indexOf([spot(node('a')), spot(node('b'))]);
    const draws = [0.1, 0.9, 0.9, 0.1];
    const first = place(request(), spots, () => draws.shift()!);
    const second = place(request(), spots, () => draws.shift()!);
    expect([first, second].map((one) => (one.kind === 'placed' ? one.spot.node.id : one.kind))).toEqual([
      'a',
      'b',
    ]);
  });

  it('prefers a healthy node to a degraded one, and that to one where the model is not loaded', () => {
    const degraded = spot(node('b'), { model_health: 'degraded' });
    const unloaded = spot(node('c'), { loaded: false });
    expect(chosen(request(), [unloaded, degraded, spot(node('a'))])).toBe('a');
    expect(chosen(request(), [unloaded, degraded])).toBe('b');
  });

  it('looks at no more of 10,000 open nodes than it draws, and takes the least loaded of those', () => {
    let looked = 0;
    let asked = 0;
    const many = Array.from({ length: 10_000 }, (_, n) => {
      const slots = { reserved: 1 + (n % 3), capacity: 4 };
      return Object.defineProperties(spot(node(`n${n}`)), {
        slots: { get: () => (looked++, slots) },
        operations: { get: () => (asked++, ['chat']) },
      });
    });
    const index = indexOf(many);
    looked = 0;
    let draw = 0;
    const placement = place(request(), index, () => (draw++ % 97) / 97);
    expect(looked).toBe(DRAWS);
    // Whether it can do the operation is asked of those alone that would be the best.
    expect(asked).toBeLessThan(DRAWS / 2);
    expect(placement).toMatchObject({ kind: 'placed', spot: { slots: { reserved: 1 } } });
  });

  it('draws until one is idle, and spreads over all that are', () => {
    const many = Array.from({ length: 100 }, (_, n) =>
      spot(node(`n${n}`), { slots: { reserved: n % 2, capacity: 4 } }),
    );
    const index = indexOf(many);
    const draws = [0.01, 0.5, 0.02, 0.5, 0.99, 0.5, 0.98, 0.5];
    let drawn = 0;
    const took = () => place(request(), index, () => draws[drawn++]!);
    expect(took()).toMatchObject({ spot: { node: { id: 'n2' } } });
    expect(drawn).toBe(4);
    expect(took()).toMatchObject({ spot: { node: { id: 'n98' } } });
    expect(drawn).toBe(8);
  });

  it('keeps a fleet of 10,000 as even as one that is looked at whole', () => {
    const many = Array.from({ length: 10_000 }, (_, n) => ({
      node: node(`n${n}`),
      slots: { reserved: 0, capacity: 16 },
    }));
    const index = indexOf(many.map(({ node: on, slots }) => spot(on, { slots })));
    let seed = 1;
    const random = () => (seed = (seed * 16_807) % 2_147_483_647) / 2_147_483_647;
    for (let n = 0; n < 40_000; n++) {
      const placement = place(request(), index, random);
      if (placement.kind === 'placed') (placement.spot.slots as { reserved: number }).reserved++;
    }
    // Four each, were they dealt out one after the other.
    const loads = many.map(({ slots }) => slots.reserved);
    expect(Math.max(...loads)).toBeLessThanOrEqual(5);
    expect(loads.filter((load) => load < 3).length).toBeLessThan(100);
  });

  it('takes the least loaded of those that fit, however many that do not are less loaded', () => {
    const idle = Array.from({ length: DRAWS - 2 }, (_, n) =>
      spot(node(`n${n}`, { allowed_models: ['other'] })),
    );
    const busy = ['a', 'b'].map((id, n) => spot(node(id), { slots: { reserved: 2 - n, capacity: 4 } }));
    expect(chosen(request(), [...idle, ...busy])).toBe('b');
    expect(chosen(request({ avoid: new Set(['b']) }), [...busy, ...idle])).toBe('a');
  });

  it('finds the one node of many that has the label', () => {
    const many = Array.from({ length: 1000 }, (_, n) => spot(node(`n${n}`)));
    many.push(spot(node('z', { labels: { zone: 'x' } })));
    expect(chosen(request({ labels: { zone: 'x' } }), many)).toBe('z');
    expect(chosen(request({ labels: { zone: 'y' } }), many)).toBe('nobody');
  });

  it('looks only at those with the label, once it has been asked for', () => {
    let looked = 0;
    const many = Array.from({ length: 1000 }, (_, n) => {
      const one = spot(node(`n${n}`, { labels: n === 7 ? { zone: 'x' } : {} }));
      return Object.defineProperty(one, 'operations', { get: () => (looked++, ['chat']) });
    });
    const index = indexOf(many);
    const asked = request({ labels: { zone: 'x' } });
    for (let n = 0; n < 3; n++)
      expect(place(asked, index, () => 0.5)).toMatchObject({ spot: { node: { id: 'n7' } } });
    expect(looked).toBe(3);
  });

  it('tells of each reason where nobody can', () => {
    const spots = indexOf([
      spot(node('a', { cordoned: true })),
      spot(node('b'), { operations: ['embeddings'] }),
    ]);
    const placement = place(request(), spots, () => 0.5);
    expect(placement).toEqual({ kind: 'nobody', refusals: ['cordoned', 'operation'] });
  });
});

describe('a route’s order', () => {
  const tier = (spots: Spot[], labels: Record<string, string> = {}) => ({
    model: 'there',
    labels,
    spots: indexOf(spots),
  });
  const inOrder = (asked: PlacementRequest, ...tiers: ReturnType<typeof tier>[]) => {
    const placement = placeInOrder(asked, tiers, () => 0.5);
    return placement.kind === 'placed' ? placement.spot.node.id : placement.kind;
  };
  const full = { reserved: 4, capacity: 4 };
  const failed = (...ids: string[]) => request({ avoid: new Set(ids) });

  it('is followed whatever the later ones could do better', () => {
    const busy = spot(node('a', { failures: 9 }), { slots: { reserved: 3, capacity: 4 }, loaded: false });
    expect(inOrder(request(), tier([busy]), tier([spot(node('b'))]))).toBe('a');
  });

  it('passes by what is full, down, resting or has failed the job', () => {
    const behind = tier([spot(node('b'))]);
    expect(inOrder(request(), tier([spot(node('a'), { slots: full })]), behind)).toBe('b');
    expect(inOrder(request(), tier([spot(node('a'), { backend_health: 'down' })]), behind)).toBe('b');
    expect(inOrder(request(), tier([spot(node('a', { resting: true }))]), behind)).toBe('b');
    expect(inOrder(failed('a'), tier([spot(node('a'))]), behind)).toBe('b');
    expect(inOrder(request(), tier([]), behind)).toBe('b');
  });

  it('waits where all are full or resting, and for a full one rather than try again what has failed', () => {
    const [a, b] = [tier([spot(node('a'), { slots: full })]), tier([spot(node('b', { resting: true }))])];
    expect(inOrder(request(), a, b)).toBe('wait');
    expect(inOrder(request(), b)).toBe('wait');
    expect(inOrder(failed('c'), tier([spot(node('c'))]), a)).toBe('wait');
    expect(inOrder(failed('c'), tier([spot(node('c'))]), b)).toBe('c');
  });

  it('tries again what has failed where nothing else is left', () => {
    const down = tier([spot(node('b'), { model_health: 'down' })]);
    expect(inOrder(failed('a'), tier([spot(node('a'))]), down)).toBe('a');
  });

  it('asks for its own labels and the request’s, and for nothing where they disagree', () => {
    const eu = node('a', { labels: { zone: 'eu', gpu: 'yes' } });
    expect(inOrder(request({ labels: { gpu: 'yes' } }), tier([spot(eu)], { zone: 'eu' }))).toBe('a');
    expect(inOrder(request(), tier([spot(eu)], { zone: 'us' }))).toBe('nobody');
    expect(inOrder(request({ labels: { zone: 'us' } }), tier([spot(eu)], { zone: 'eu' }))).toBe('nobody');
  });

  it('holds a node’s allow-list against the model’s name there', () => {
    const allowed = spot(node('a', { allowed_models: ['there'] }));
    expect(inOrder(request({ model: 'public' }), tier([allowed]))).toBe('a');
    expect(inOrder(request({ model: 'there' }), { ...tier([allowed]), model: 'other' })).toBe('nobody');
  });

  it('tells of every reason, of all targets, where nobody can', () => {
    const tiers = [
      tier([spot(node('a', { cordoned: true }))]),
      tier([spot(node('b', { state: 'offline' }))]),
    ];
    expect(placeInOrder(request(), tiers, () => 0.5)).toEqual({
      kind: 'nobody',
      refusals: ['cordoned', 'offline'],
    });
    expect(placeInOrder(request(), [], () => 0.5)).toEqual({ kind: 'nobody', refusals: [] });
  });

  it('knows whether somebody else could serve, in any target', () => {
    const tiers = [tier([spot(node('a'))]), tier([spot(node('b'), { slots: full })])];
    expect(servedElsewhereInOrder(request(), tiers, 'a')).toBe(true);
    expect(servedElsewhereInOrder(failed('b'), tiers, 'a')).toBe(false);
    expect(servedElsewhereInOrder(request(), tiers.slice(0, 1), 'a')).toBe(false);
  });
});

describe('a list of models', () => {
  it('has every model when it is empty, and endings by a star', () => {
    expect(matchesModel([], 'x')).toBe(true);
    expect(matchesModel(['llama*'], 'llama3:8b')).toBe(true);
    expect(matchesModel(['llama*'], 'qwen')).toBe(false);
    expect(matchesModel(['llama3'], 'llama3:8b')).toBe(false);
  });
});
