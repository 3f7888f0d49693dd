import {
  type NodeRecord,
  closedBy,
  holdAnyway,
  release,
  releaseAll,
  reserve,
  stepLiveness,
  timings,
} from '@flotilla/core';
import fc from 'fast-check';
import { ManualClock } from '@flotilla/core/testing';
import { describe, expect, test } from 'vitest';
import { createRoster } from './roster.ts';

const record = (id: string, change: Partial<NodeRecord> = {}): NodeRecord => ({
  id,
  name: id,
  labels: {},
  allowed_models: [],
  state: 'offline',
  cordoned: false,
  drain_deadline_at: null,
  epoch: 1,
  descriptor: {
    name: id,
    labels: {},
    version: '1',
    pools: [{ id: 'p', capacity: 1, capacity_from: 'config' }],
    backends: [{ id: 'b', kind: 'x', pool: 'p', models: [{ id: 'm', operations: ['chat'] }] }],
  },
  descriptor_hash: 'h',
  close_reason: null,
  created_at: 0,
  last_seen_at: 0,
  revoked_at: null,
  credentials: [{ id: `cred_${id}`, hash: `hash_${id}`, created_at: 0, expires_at: null }],
  ...change,
});
const roster = () => createRoster(new ManualClock(), timings(5000));

describe('the roster', () => {
  test('awaits the nodes that had a link when the store last heard of them, and no others', () => {
    const nodes = roster();
    const { added } = nodes.load(
      [record('a', { state: 'online' }), record('b', { state: 'suspect' }), record('c')],
      [],
    );
    expect(added.map(({ id, state }) => [id, state])).toEqual([
      ['a', 'suspect'],
      ['b', 'suspect'],
      ['c', 'offline'],
    ]);
    expect(nodes.spots('m').patient).toHaveLength(2);
  });

  test('keeps a node whose row cannot be read as it was, credential and all; one without a row is gone', () => {
    const nodes = roster();
    nodes.load([record('a', { state: 'online' }), record('b')], []);
    const { removed } = nodes.load([], ['a']);
    expect(removed.map(({ id }) => id)).toEqual(['b']);
    expect(nodes.byCredential('hash_a', 0)).toMatchObject({ revoked: false, node: { id: 'a' } });
    expect(nodes.byCredential('hash_b', 0)).toBeUndefined();
    expect(nodes.spots('m').size).toBe(1);
  });

  test('keeps the spots where their state says, whatever changes a node, its health or its slots', () => {
    const step = fc.record({
      what: fc.constantFrom(
        'register',
        'close',
        'tick',
        'cordon',
        'drain',
        'health',
        'describe',
        'reserve',
        'release',
        'hold',
        'forget',
        'stop',
      ),
      node: fc.constantFrom('a', 'b'),
      value: fc.nat(3),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const clock = new ManualClock();
        const t = timings(5000);
        const nodes = createRoster(clock, t);
        const records = new Map(['a', 'b'].map((id) => [id, record(id)]));
        const load = (id: string, change: Partial<NodeRecord>) => {
          records.set(id, { ...records.get(id)!, ...change });
          nodes.load([...records.values()], []);
        };
        nodes.load([...records.values()], []);
        for (const { what, node: id, value } of steps) {
          const node = nodes.find(id)!;
          const live = (event: Parameters<typeof stepLiveness>[1]) => {
            node.liveness = stepLiveness(node.liveness, event, clock.now_ms(), t);
            nodes.sync(node);
          };
          if (what === 'register') live({ type: 'registered' });
          if (what === 'register') live({ type: 'reconciled' });
          if (what === 'close') live({ type: 'closed', reason: 'x' });
          if (what === 'tick') {
            clock.advance(value * 5000);
            live({ type: 'tick' });
          }
          if (what === 'cordon') load(id, { cordoned: value > 1 });
          if (what === 'drain') load(id, { drain_deadline_at: value > 1 ? 1 : null });
          if (what === 'health')
            nodes.setHealth(node, [
              { id: 'b', health: (['healthy', 'degraded', 'down'] as const)[value % 3]!, models: [] },
            ]);
          if (what === 'describe') {
            const { descriptor } = record(id);
            nodes.describe(
              node,
              { ...descriptor!, pools: [{ id: 'p', capacity: value, capacity_from: 'config' }] },
              `h${value}`,
            );
          }
          if (what === 'reserve') reserve(node.ledger, 'p', 'job', value + 1);
          if (what === 'hold') holdAnyway(node.ledger, 'p', 'job', value + 1);
          if (what === 'release') release(node.ledger, 'job', value + 1);
          if (what === 'forget') releaseAll(node.ledger);
          if (what === 'stop') {
            node.stopping = value > 1;
            nodes.sync(node);
          }
          const spots = nodes.spots('m');
          const open = [...spots.all()].filter((spot) => closedBy(spot) === null);
          expect(new Set(spots.open.flat())).toEqual(new Set(open));
          const full = [...spots.all()].filter((spot) => closedBy(spot) === 'full');
          for (const spot of full) expect(spots.patient).toContain(spot);
        }
      }),
    );
  });

  test('takes what a node said of its journal for true while it is connected, not for why it gets nothing when it is away', () => {
    const nodes = roster();
    const [node] = nodes.load([record('a', { state: 'online' })], []).added;
    node!.journal = { health: 'down' };
    expect(nodes.sync(node!)).toBe(false);
    const t = timings(5000);
    node!.liveness = stepLiveness(
      stepLiveness(node!.liveness, { type: 'registered' }, 1, t),
      { type: 'reconciled' },
      1,
      t,
    );
    expect([nodes.sync(node!), node!.journal_down]).toEqual([true, true]);
    // Nothing but that has changed: who waits for it has to be looked at again.
    node!.journal = { health: 'healthy' };
    expect([nodes.sync(node!), node!.journal_down]).toEqual([true, false]);
  });

  test('sees a label that an operator has changed', () => {
    const nodes = roster();
    nodes.load([record('a', { labels: { zone: 'x' } })], []);
    const { changed } = nodes.load([record('a', { labels: { zone: 'y' } })], []);
    expect(changed).toMatchObject([{ id: 'a', labels: { zone: 'y' } }]);
  });
});
