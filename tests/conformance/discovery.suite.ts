import type { DiscoveryEnd, NewDiscovery } from '@flotilla/core';
import type { BackendTold } from '@flotilla/protocol';
import { describe, expect, test } from 'vitest';
import { enrolNodes, newId, T0 } from './rows.ts';
import type { Subject } from './store.suite.ts';

const listed = (over: Partial<Extract<BackendTold, { outcome: 'listed' }>> = {}): BackendTold => ({
  outcome: 'listed',
  backend: 'ollama',
  kind: 'ollama',
  version: '1',
  models: [{ id: 'llama3', operations: ['chat'] }],
  models_total: 1,
  ...over,
});

export function discoverySuite(subject: Subject): void {
  const aRequest = (node: string, over: Partial<NewDiscovery> = {}): NewDiscovery => ({
    id: newId('discovery', Date.now()),
    node,
    backend: null,
    timeout_ms: 60_000,
    refused: null,
    ...over,
  });
  const anEnd = (id: string, node: string, over: Partial<DiscoveryEnd> = {}): DiscoveryEnd => ({
    id,
    node,
    state: 'completed',
    reason: null,
    stage: 'listing',
    waiting_for: null,
    results: [listed()],
    ...over,
  });
  const aNode = async () => (await enrolNodes(subject.store, 1))[0]!;

  describe('model discoveries', () => {
    test('one is in flight for each node and backend, whoever asks at once', async () => {
      const { store } = subject;
      const node = await aNode();
      const made = await Promise.all(Array.from({ length: 12 }, () => store.openDiscovery(aRequest(node))));
      expect(new Set(made.map(({ id }) => id)).size).toBe(1);
      expect(made[0]).toMatchObject({ node, backend: null, state: 'pending', stage: 'pending', results: [] });
      expect(made[0]!.expires_at - made[0]!.created_at).toBe(60_000);
      const other = await store.openDiscovery(aRequest(node, { backend: 'ollama' }));
      expect(other).toMatchObject({ backend: 'ollama' });
      expect(other.id).not.toBe(made[0]!.id);
      await store.finishDiscovery(anEnd(made[0]!.id, node));
      expect((await store.openDiscovery(aRequest(node))).id).not.toBe(made[0]!.id);
    });

    test('one whose time is over is neither shared nor in the way, and tells how far it came', async () => {
      const { store } = subject;
      const node = await aNode();
      const late = await store.openDiscovery(aRequest(node, { timeout_ms: 0 }));
      await store.noteDiscoveries([{ id: late.id, node, stage: 'listing', waiting_for: 'ollama' }]);
      const next = await store.openDiscovery(aRequest(node));
      expect(next.id).not.toBe(late.id);
      expect(await store.findDiscovery(late.id)).toMatchObject({
        state: 'timed_out',
        reason: 'timed_out',
        stage: 'listing',
        waiting_for: 'ollama',
      });
      expect(await store.finishDiscovery(anEnd(late.id, node))).toBe('stale');
    });

    test('looking at the open ones ends those whose time is over', async () => {
      const { store } = subject;
      const node = await aNode();
      const late = await store.openDiscovery(aRequest(node, { backend: 'a', timeout_ms: 0 }));
      const open = await store.openDiscovery(aRequest(node, { backend: 'b' }));
      const found = (await store.openDiscoveries(1000)).filter((row) => row.node === node);
      expect(found.map(({ id }) => id)).toEqual([open.id]);
      expect(found[0]!.left_ms).toBeGreaterThan(0);
      expect(await store.findDiscovery(late.id)).toMatchObject({ state: 'timed_out', stage: 'pending' });
    });

    test('a stage never goes back, and never touches what has ended or is another node’s', async () => {
      const { store } = subject;
      const node = await aNode();
      const { id } = await store.openDiscovery(aRequest(node));
      const note = (stage: 'claimed' | 'listing', of = node) =>
        store.noteDiscoveries([{ id, node: of, stage, waiting_for: 'x' }]);
      await note('listing', 'node_other');
      expect(await store.findDiscovery(id)).toMatchObject({ state: 'pending', stage: 'pending' });
      await note('listing');
      await note('claimed');
      expect(await store.findDiscovery(id)).toMatchObject({ state: 'running', stage: 'listing' });
      await store.finishDiscovery(
        anEnd(id, node, { state: 'failed', reason: 'offline', stage: null, results: [] }),
      );
      await note('listing');
      expect(await store.findDiscovery(id)).toMatchObject({ state: 'failed', stage: 'listing' });
    });

    test('of many ends at once one is accepted; one of another node is not', async () => {
      const { store } = subject;
      const node = await aNode();
      const { id } = await store.openDiscovery(aRequest(node));
      expect(await store.finishDiscovery(anEnd(id, 'node_other'))).toBe('stale');
      const outcomes = await Promise.all(
        Array.from({ length: 8 }, () => store.finishDiscovery(anEnd(id, node))),
      );
      expect(outcomes.filter((outcome) => outcome === 'accepted')).toHaveLength(1);
      expect(await store.finishDiscovery(anEnd(id, node))).toBe('duplicate');
      expect(await store.findDiscovery(id)).toMatchObject({ state: 'completed', results: [listed()] });
      expect((await store.findDiscovery(id))!.finished_at).not.toBeNull();
    });

    test('a refusal is a record of its own, and is not made anew for who asks again at once', async () => {
      const { store } = subject;
      const node = await aNode();
      const first = await store.openDiscovery(aRequest(node, { refused: 'offline' }));
      expect(first).toMatchObject({ state: 'failed', reason: 'offline', stage: 'pending' });
      expect((await store.openDiscovery(aRequest(node, { refused: 'offline' }))).id).toBe(first.id);
      expect((await store.openDiscovery(aRequest(node, { refused: 'unsupported' }))).id).not.toBe(first.id);
      expect((await store.openDiscovery(aRequest(node))).state).toBe('pending');
    });
  });

  describe('catalogues', () => {
    const tell = async (node: string, ...results: BackendTold[]) => {
      const { id } = await subject.store.openDiscovery(aRequest(node));
      await subject.store.finishDiscovery(anEnd(id, node, { results }));
    };
    const shown = async (node: string) =>
      (await subject.store.loadCatalogues(node)).map(({ backend, version, models }) => [
        backend,
        version,
        models.map(({ id }) => id),
      ]);

    test('the last good list of each backend stays through failures, until another comes', async () => {
      const node = await aNode();
      await tell(node, listed(), listed({ backend: 'vllm', kind: 'vllm', version: undefined, models: [] }));
      const failure = {
        outcome: 'failed',
        backend: 'ollama',
        reason: 'backend_down',
        stage: 'connecting',
      } as const;
      await tell(node, failure);
      expect(await shown(node)).toEqual([
        ['ollama', '1', ['llama3']],
        ['vllm', null, []],
      ]);
      await tell(node, listed({ version: '2', models: [{ id: 'qwen\u0000', operations: ['chat'] }] }));
      expect(await shown(node)).toEqual([
        ['ollama', '2', ['qwen\uFFFD']],
        ['vllm', null, []],
      ]);
      const [ollama] = await subject.store.loadCatalogues(node);
      expect(ollama!.age_ms).toBeGreaterThanOrEqual(0);
      expect(ollama!.age_ms).toBeLessThan(60_000);
    });

    test('goes with the descriptor that names another kind or version of its backend', async () => {
      const { store } = subject;
      const node = await aNode();
      const epoch = (await store.takeEpochs('rep_a', [node])).get(node)!;
      const describe_ = (version: string | undefined, kind = 'ollama', of = epoch) =>
        store.saveDescriptors([
          {
            id: node,
            epoch: of,
            descriptor: {
              name: 'x',
              labels: {},
              version: '1',
              pools: [],
              backends: [
                { id: 'ollama', kind, pool: 'p', models: [], ...(version === undefined ? {} : { version }) },
              ],
            },
            descriptor_hash: `${kind}-${version}`,
          },
        ]);
      await tell(node, listed(), listed({ backend: 'other' }));
      await describe_('1');
      await describe_(undefined);
      await describe_(undefined, 'unknown');
      await describe_('2', 'ollama', epoch - 1); // of an older link: it says nothing any more
      expect(await shown(node)).toHaveLength(2);
      await describe_('2');
      expect(await shown(node)).toEqual([['other', '1', ['llama3']]]);
      await tell(node, listed({ version: '2' }));
      await describe_('2', 'llama.cpp');
      expect(await shown(node)).toEqual([['other', '1', ['llama3']]]);
    });

    test('a node has as many as a descriptor names backends, and none when it is deleted', async () => {
      const { store } = subject;
      const node = await aNode();
      const many = (from: number) =>
        Array.from({ length: 200 }, (_, index) => listed({ backend: `b${from + index}` }));
      await tell(node, ...many(0));
      await subject.beneath.clockMoves();
      await tell(node, ...many(200));
      const rows = await store.loadCatalogues(node);
      expect(rows).toHaveLength(256);
      expect(rows.some(({ backend }) => backend === 'b399')).toBe(true);
      await store.deleteNode(node);
      expect(await store.loadCatalogues(node)).toEqual([]);
      expect(await subject.beneath.discoveriesOf(node)).toBe(0);
    });
  });

  test('ended discoveries are swept after an hour, open ones never', async () => {
    const { store } = subject;
    const node = await aNode();
    const old = { id: newId('discovery', T0), backend: 'old' };
    const { id } = await store.openDiscovery(aRequest(node, old));
    const open = await store.openDiscovery(aRequest(node, { id: newId('discovery', T0), backend: 'open' }));
    await store.finishDiscovery(anEnd(id, node));
    const limits = { jobs_ms: 1e12, usage_ms: 1e12, audit_ms: 1e12, batch: 100 };
    expect(await store.sweep(limits, T0 + 3_599_000)).toMatchObject({ discoveries: 0 });
    expect(await store.sweep(limits, T0 + 3_601_000)).toMatchObject({ discoveries: 1 });
    expect(await store.findDiscovery(id)).toBeUndefined();
    expect(await store.findDiscovery(open.id)).toMatchObject({ state: 'pending' });
  });
}
