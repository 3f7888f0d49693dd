import type { NodeView } from '@flotilla/protocol';
import { expect, test } from 'vitest';
import type { LinkedNode, Questions } from '../bus/questions.ts';
import { createLinkedViews } from './linked-views.ts';
import type { FleetNode } from './node.ts';

/** Two nodes that another replica has the links of, which answers so; undefined: it does not. */
function setup(answer: Partial<LinkedNode>[] | undefined, more: Partial<FleetNode> = {}) {
  const asked: string[][] = [];
  const ask = (_replica: string, { nodes }: { nodes: string[] }) => {
    asked.push(nodes);
    return Promise.resolve(answer);
  };
  const node = (id: string) => ({
    id,
    elsewhere: true,
    replica: 'rep_b',
    state: 'online',
    link: null,
    ...more,
  });
  const complete = createLinkedViews({
    roster: { find: (id) => node(id) as FleetNode },
    questions: { ask, on() {} } as unknown as Pick<Questions, 'ask' | 'on'>,
    view: () => {
      throw new Error('Nobody asks this replica.');
    },
  });
  return { complete, asked };
}

const own = (id: string) =>
  ({
    id,
    epoch: 5,
    state: 'online',
    link_rtt_ms: null,
    drain: { deadline_at: 'then', in_flight: 0 },
  }) as NodeView;

test('a node is shown as the one with its link shows it, asked once for all', async () => {
  const { complete, asked } = setup([{ id: 'a', epoch: 5, link_rtt_ms: 3, in_flight: 2 }]);
  const [a, b] = await complete([own('a'), own('b')]);
  expect(a).toMatchObject({ link_rtt_ms: 3, drain: { deadline_at: 'then', in_flight: 2 } });
  expect(b).toEqual(own('b'));
  expect(asked).toEqual([['a', 'b']]);
});

test('what an older link was like is not shown for the newer one', async () => {
  const { complete } = setup([{ id: 'a', epoch: 4, link_rtt_ms: 3, in_flight: 2 }]);
  expect(await complete([own('a')])).toEqual([own('a')]);
});

test('a node that is revoked or offline here is not asked for: that one may not have heard of it yet', async () => {
  for (const state of ['revoked', 'offline'] as const) {
    const { complete, asked } = setup([{ id: 'a', epoch: 5, state: 'online', in_flight: 0 }], { state });
    expect(await complete([own('a')])).toEqual([own('a')]);
    expect(asked).toEqual([]);
  }
});

test('a replica that does not answer leaves what is known', async () => {
  const { complete } = setup(undefined);
  expect(await complete([own('a')])).toEqual([own('a')]);
});
