import { describe, expect, it } from 'vitest';
import {
  type PlacementNode,
  type PlacementRequest,
  type Spot,
  matchesModel,
  place,
  refusal,
} from './placement.ts';

const node = (id: string, over: Partial<PlacementNode> = {}): PlacementNode => ({
  id,
  state: 'online',
  stalled: false,
  cordoned: false,
  draining: false,
  labels: {},
  allowed_models: null,
  failures: 0,
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
  affinity: null,
  ...over,
});
const chosen = (asked: PlacementRequest, spots: Spot[]) => {
  const placement = place(asked, spots, () => 0.5);
  return placement.kind === 'placed' ? placement.spot.node.id : placement.kind;
};

describe('the placement filter', () => {
  it.each([
    ['pinned_elsewhere', request({ pin: 'z' }), spot(node('a'))],
    ['operation', request({ operation: 'embeddings' }), spot(node('a'))],
    ['not_allowed', request(), spot(node('a', { allowed_models: ['other'] }))],
    ['labels', request({ labels: { zone: 'x' } }), spot(node('a', { labels: { zone: 'y' } }))],
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
  });

  it('waits where somebody may come back, and says nobody where nobody can', () => {
    expect(chosen(request(), [spot(node('a', { state: 'suspect' }))])).toBe('wait');
    expect(chosen(request(), [spot(node('a'), { backend_health: 'down' })])).toBe('nobody');
    expect(chosen(request(), [])).toBe('nobody');
  });

  it('spreads equal nodes at random', () => {
    const spots = [spot(node('a')), spot(node('b'))];
    const draws = [0.1, 0.9, 0.9, 0.1];
    const first = place(request(), spots, () => draws.shift()!);
    const second = place(request(), spots, () => draws.shift()!);
    expect([first, second].map((one) => (one.kind === 'placed' ? one.spot.node.id : one.kind))).toEqual([
      'a',
      'b',
    ]);
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
