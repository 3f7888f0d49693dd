import { describe, expect, test } from 'vitest';
import { aToken, anEnrolment, enrolNodes, newHash, newId, T0 } from './rows.ts';
import type { EngineSubject, Subject } from './store.suite.ts';

const DESCRIPTOR = {
  name: 'ignored',
  labels: {},
  version: '1.0.0',
  pools: [{ id: 'p', capacity: 4, capacity_from: 'config' as const }],
  backends: [
    { id: 'b', kind: 'ollama', pool: 'p', models: [{ id: 'llama3', operations: ['chat' as const] }] },
  ],
};

export function nodesSuite(subject: Subject): void {
  const find = async (id: string) => (await subject.store.loadNodes()).nodes.find((node) => node.id === id);

  describe('nodes', () => {
    test('epochs of all nodes rise in one call; unknown ids are left out and a double counts once', async () => {
      const [a, b] = (await enrolNodes(subject.store, 2)) as [string, string];
      expect(await subject.store.takeEpochs('rep_a', [a, b, a, 'node_none'])).toEqual(
        new Map([
          [a, 1],
          [b, 1],
        ]),
      );
      expect(await subject.store.takeEpochs('rep_b', [b])).toEqual(new Map([[b, 2]]));
      expect(await subject.store.takeEpochs('rep_b', [])).toEqual(new Map());
    });

    test('epochs taken by many at once are all different and none is skipped', async () => {
      const nodes = await enrolNodes(subject.store, 3);
      const shuffled = [nodes, [...nodes].reverse()];
      const taken = await Promise.all(
        Array.from({ length: 20 }, (_, n) => subject.store.takeEpochs(`rep_${n}`, shuffled[n % 2]!)),
      );
      for (const node of nodes) {
        const epochs = taken.map((epoch) => epoch.get(node)!).sort((x, y) => x - y);
        expect(epochs).toEqual(Array.from({ length: 20 }, (_, n) => n + 1));
      }
    });

    test('a revoked node gets no epoch and keeps its state', async () => {
      const [node] = (await enrolNodes(subject.store, 1)) as [string];
      await subject.store.takeEpochs('rep_a', [node]);
      expect(await subject.store.revokeNode(node, 100)).toMatchObject({ state: 'revoked', revoked_at: 100 });
      expect(await subject.store.revokeNode(node, 200)).toMatchObject({ revoked_at: 100 });
      expect(await subject.store.takeEpochs('rep_a', [node])).toEqual(new Map());
      await subject.store.saveNodeStates([
        { id: node, epoch: 1, state: 'online', close_reason: null, at: 1 },
      ]);
      expect(await find(node)).toMatchObject({ state: 'revoked', epoch: 1 });
      expect((await find(node))?.credentials).toHaveLength(1);
    });

    test('states and descriptors of an older epoch change nothing', async () => {
      const [node] = (await enrolNodes(subject.store, 1)) as [string];
      await subject.store.takeEpochs('rep_a', [node]);
      await subject.store.takeEpochs('rep_b', [node]);
      await subject.store.saveNodeStates([
        { id: node, epoch: 1, state: 'offline', close_reason: 'old', at: 1 },
      ]);
      await subject.store.saveDescriptors([
        { id: node, epoch: 1, descriptor: DESCRIPTOR, descriptor_hash: 'old' },
      ]);
      expect(await find(node)).toMatchObject({ state: 'pending', descriptor: null, descriptor_hash: null });
      await subject.store.saveNodeStates([
        { id: node, epoch: 2, state: 'suspect', close_reason: 'x', at: 2 },
        { id: node, epoch: 2, state: 'online', close_reason: null, at: 3 },
        { id: node, epoch: 1, state: 'offline', close_reason: 'old', at: 4 },
      ]);
      await subject.store.saveDescriptors([
        { id: node, epoch: 2, descriptor: DESCRIPTOR, descriptor_hash: 'new' },
      ]);
      const { name } = (await find(node))!;
      expect(await find(node)).toMatchObject({
        state: 'online',
        close_reason: null,
        descriptor: { ...DESCRIPTOR, name },
        descriptor_hash: 'new',
      });
    });

    test('last seen is flushed for all nodes at once and only moves forward', async () => {
      const [a, b] = (await enrolNodes(subject.store, 2)) as [string, string];
      await subject.store.flushSeen([
        { id: a, at: 50 },
        { id: b, at: 60 },
        { id: 'node_none', at: 70 },
      ]);
      await subject.store.flushSeen([{ id: a, at: 40 }]);
      expect([(await find(a))?.last_seen_at, (await find(b))?.last_seen_at]).toEqual([50, 60]);
    });

    test('a transition takes last seen along, forward only, and leaves it where it does not say', async () => {
      const [node] = (await enrolNodes(subject.store, 1)) as [string];
      await subject.store.takeEpochs('rep_a', [node]);
      const change = { id: node, epoch: 1, state: 'online' as const, close_reason: null, at: 1 };
      const seen = async (last_seen_at?: number | null) => {
        await subject.store.saveNodeStates([
          { ...change, ...(last_seen_at !== undefined && { last_seen_at }) },
        ]);
        return (await find(node))?.last_seen_at;
      };
      expect([await seen(null), await seen(50), await seen(40), await seen(null), await seen()]).toEqual([
        null,
        50,
        50,
        50,
        50,
      ]);
      await subject.store.saveNodeStates([{ ...change, epoch: 0, last_seen_at: 60 }]);
      expect((await find(node))?.last_seen_at).toBe(50);
    });

    test('replicas that flush the same nodes in opposite orders do not wait for each other for ever', async () => {
      const nodes = await enrolNodes(subject.store, 30);
      const seen = nodes.map((id) => ({ id, at: 0 }));
      const orders = [seen, [...seen].reverse()];
      await Promise.all(
        Array.from({ length: 40 }, (_, n) =>
          subject.store.flushSeen(orders[n % 2]!.map(({ id }) => ({ id, at: n + 1 }))),
        ),
      );
      expect((await find(nodes[0]!))?.last_seen_at).toBe(40);
    });

    test('a new credential works beside the old one until the old one ends', async () => {
      const [node] = (await enrolNodes(subject.store, 1)) as [string];
      const fresh = { id: newId('credential', T0 + 1), hash: newHash(), created_at: T0, expires_at: null };
      const soon = Date.now() + 60_000;
      expect(await subject.store.rotateCredential(node, fresh, soon)).toBe(true);
      const [old, current] = (await find(node))!.credentials;
      expect([old?.expires_at, current]).toEqual([soon, fresh]);
      const longAgo = Date.now() - 2 * 86_400_000;
      const third = { ...fresh, id: newId('credential', T0 + 2), hash: newHash() };
      expect(await subject.store.rotateCredential(node, third, longAgo)).toBe(true);
      expect((await find(node))?.credentials).toEqual([third]);
      expect(await subject.store.rotateCredential('node_none', { ...third, id: 'c', hash: 'c' }, 1)).toBe(
        false,
      );
    });

    test('the operator’s edits come back; a deleted node is gone and its name is free again', async () => {
      const [node] = (await enrolNodes(subject.store, 1)) as [string];
      const patch = { labels: { a: 'b' }, allowed_models: ['m'], cordoned: true, drain_deadline_at: T0 };
      const updated = await subject.store.updateNode(node, patch);
      expect(updated).toMatchObject(patch);
      expect(await subject.store.updateNode('node_none', patch)).toBeUndefined();
      expect(await subject.store.deleteNode(node)).toBe(true);
      expect(await subject.store.deleteNode(node)).toBe(false);
      const token = aToken();
      await subject.store.insertToken(token);
      const again = await subject.store.enrolNode(anEnrolment(token.hash, { name: updated!.name }));
      expect(again).toHaveProperty('enrolled');
    });
  });

  describe('replicas', () => {
    test('a bump makes the row and then counts, so that a watcher sees one stand still', async () => {
      const bumpsOf = async (id: string) =>
        (await subject.store.listReplicas()).find((replica) => replica.id === id)?.bumps;
      await subject.store.enterReplica('rep_x', true);
      expect(await Promise.all([1, 2, 3].map(() => subject.store.bumpReplica('rep_x')))).toEqual([
        true,
        true,
        true,
      ]);
      expect(await bumpsOf('rep_x')).toBe(4);
      await subject.store.endReplica('rep_x');
      expect(await subject.store.bumpReplica('rep_x')).toBe(false);
      expect(await bumpsOf('rep_x')).toBeUndefined();
    });
  });
}

/** Rows as no program of ours writes them. */
export function damagedNodesSuite(subject: EngineSubject): void {
  describe('nodes whose rows are damaged', () => {
    test('one unreadable descriptor or row never costs the others, and is logged', async () => {
      const [bad, partly, broken, good] = (await enrolNodes(subject.store, 4)) as [
        string,
        string,
        string,
        string,
      ];
      const epochs = await subject.store.takeEpochs('rep_a', [bad, partly, broken, good]);
      await subject.store.saveDescriptors(
        [bad, partly, good].map((id) => ({
          id,
          epoch: epochs.get(id)!,
          descriptor: DESCRIPTOR,
          descriptor_hash: 'h',
        })),
      );
      await subject.sql.query(`update nodes set descriptor = '[17]' where id = $1`, [bad]);
      await subject.sql.query(
        `update nodes set descriptor = '{"version": 1, "pools": [{"id": "p"}]}' where id = $1`,
        [partly],
      );
      await subject.sql.query(`update nodes set labels = '"x"' where id = $1`, [broken]);
      const { nodes, unreadable } = await subject.store.loadNodes();
      const loaded = new Map(nodes.map((node) => [node.id, node]));
      expect(unreadable).toEqual([broken]);
      expect(loaded.get(bad)).toMatchObject({ descriptor: null, descriptor_hash: null });
      expect(loaded.get(partly)).toMatchObject({ descriptor: { pools: [] }, descriptor_hash: null });
      expect(loaded.has(broken)).toBe(false);
      expect(loaded.get(good)).toMatchObject({ descriptor: { version: '1.0.0' }, descriptor_hash: 'h' });
      const told = subject.logged.filter(({ level }) => level === 'warn' || level === 'error');
      expect(told.map(({ fields }) => fields['node'])).toEqual(expect.arrayContaining([bad, partly, broken]));
      for (const id of [bad, partly, broken]) await subject.store.deleteNode(id);
    });

    test('a descriptor that the caller has is neither sent nor read again', async () => {
      const [held, other] = (await enrolNodes(subject.store, 2)) as [string, string];
      const epochs = await subject.store.takeEpochs('rep_a', [held, other]);
      await subject.store.saveDescriptors(
        [held, other].map((id) => ({
          id,
          epoch: epochs.get(id)!,
          descriptor: DESCRIPTOR,
          descriptor_hash: 'h',
        })),
      );
      await subject.sql.query(`update nodes set descriptor = '[17]' where id = $1`, [held]);
      const asked: string[] = [];
      const { nodes } = await subject.store.loadNodes((id, hash) => {
        if (id === held || id === other) asked.push(hash);
        return id === held ? DESCRIPTOR : undefined;
      });
      const loaded = new Map(nodes.map((node) => [node.id, node]));
      expect(asked).toEqual(['h', 'h']);
      expect(loaded.get(held)).toMatchObject({ descriptor: DESCRIPTOR, descriptor_hash: 'h' });
      expect(loaded.get(other)).toMatchObject({ descriptor: { version: '1.0.0' }, descriptor_hash: 'h' });
      for (const id of [held, other]) await subject.store.deleteNode(id);
    });
  });
}
