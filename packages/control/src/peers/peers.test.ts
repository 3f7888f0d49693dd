import { describe, expect, test } from 'vitest';
import { type PeerReplicas, nodeRecord, peerReplicas } from '../testing/peer-replicas.ts';

/** Two replicas, or three, in virtual time: a client at one, the node that serves it at another. */
const NODES = [nodeRecord('node_a', 'at-a'), nodeRecord('node_b', 'at-b')];

function two(world: PeerReplicas, body_memory_bytes?: number) {
  const a = world.replica('rep_a', NODES, body_memory_bytes);
  const b = world.replica('rep_b', NODES, body_memory_bytes);
  const [at_a, at_b] = [a.link('node_a'), b.link('node_b')];
  a.elsewhere('node_b', b.id);
  b.elsewhere('node_a', a.id);
  return { a, b, at_a, at_b };
}

describe('attached work of two replicas', () => {
  test('is done where each claims what waits at the other in the same moment', async () => {
    const world = peerReplicas();
    const { a, b, at_a, at_b } = two(world);
    const [one, other] = [a.ask('job_1', 'at-b'), b.ask('job_2', 'at-a')];
    await world.pass(50);
    expect([at_a.offers.map(({ job }) => job.id), at_b.offers.map(({ job }) => job.id)]).toEqual([
      ['job_2'],
      ['job_1'],
    ]);
    for (const link of [at_a, at_b]) {
      link.begins(link.offers[0]!, 'Hello');
      link.ends(link.offers[0]!);
    }
    await world.pass(50);
    expect([one.text, one.end?.state, other.text, other.end?.state]).toEqual([
      'Hello',
      'succeeded',
      'Hello',
      'succeeded',
    ]);
    expect([a.node('node_a').attempts.size, b.node('node_b').attempts.size]).toEqual([0, 0]);
  });

  test('is not begun that its client leaves while the request is on its way, and its slot and memory are free', async () => {
    const world = peerReplicas();
    const { a, b, at_b } = two(world);
    // More than a window, so that it takes some ways to and fro.
    const asked = a.ask('job_1', 'at-b', new Uint8Array(1_000_000));
    const credits = () =>
      world.said.filter(({ from, message }) => from === b.id && message.type === 'credit');
    while (credits().length === 0) await world.pass(1);
    expect([at_b.offers.length, b.memory.held_bytes]).toEqual([0, 1_000_000]);
    asked.leave();
    await world.pass(50);
    expect([asked.end?.state, at_b.offers.length, b.memory.held_bytes]).toEqual(['cancelled', 0, 0]);
    a.ask('job_2', 'at-b');
    await world.pass(50);
    expect(at_b.offers.map(({ job }) => job.id)).toEqual(['job_2']);
  });

  test('is claimed only as far as there is memory for its requests, and goes on when there is again', async () => {
    const world = peerReplicas();
    const roomy = [nodeRecord('node_b', 'at-b', 4)];
    const a = world.replica('rep_a', roomy);
    const b = world.replica('rep_b', roomy, 250_000);
    const at_b = b.link('node_b');
    a.elsewhere('node_b', b.id);
    for (const job of ['job_1', 'job_2', 'job_3']) a.ask(job, 'at-b', new Uint8Array(100_000));
    await world.pass(100);
    for (const attempt of at_b.offers) at_b.begins(attempt, 'Hello');
    await world.pass(1000);
    expect([at_b.offers.length, b.memory.held_bytes]).toEqual([2, 200_000]);
    at_b.ends(at_b.offers[0]!);
    await world.pass(500);
    expect([at_b.offers.length, b.memory.held_bytes]).toEqual([3, 200_000]);
    at_b.begins(at_b.offers[2]!, 'Hello');
    // One that is larger than all there is goes alone.
    a.ask('job_4', 'at-b', new Uint8Array(400_000));
    for (const attempt of at_b.offers.slice(1)) at_b.ends(attempt);
    await world.pass(500);
    expect([at_b.offers.length, b.memory.held_bytes]).toEqual([4, 400_000]);
    at_b.begins(at_b.offers[3]!, 'Hello');
    at_b.ends(at_b.offers[3]!);
    await world.pass(50);
    expect(b.memory.held_bytes).toBe(0);
  });

  describe('whose node comes back to a third replica in mid-stream', () => {
    const held = {
      job: 'job_1',
      attempt: 1,
      owner: 'rep_a',
      stream_offset: 3,
      body_offset: 2,
      state: 'running' as const,
    };
    async function moved(world: PeerReplicas) {
      const { a, b, at_b } = two(world);
      const c = world.replica('rep_c', NODES);
      const asked = a.ask('job_1', 'at-b');
      await world.pass(50);
      at_b.begins(at_b.offers[0]!, 'Hel');
      await world.pass(20);
      b.dispatcher.others.letGo(b.node('node_b'));
      b.elsewhere('node_b', c.id);
      const at_c = c.link('node_b', 2);
      c.dispatcher.others.ask(c.node('node_b'), at_c, [held]);
      return { asked, c, at_c };
    }

    test('goes on there', async () => {
      const world = peerReplicas();
      const { asked, c, at_c } = await moved(world);
      await world.pass(20);
      const kept = { job: 'job_1', attempt: 1, verdict: 'keep', acked_offset: 3, head_received: true };
      expect(at_c.told).toMatchObject([{ type: 'inventory.verdicts', verdicts: [kept] }]);
      const [attempt] = c.node('node_b').attempts.values();
      at_c.ends(attempt!);
      await world.pass(20);
      expect([asked.text, asked.end?.state]).toEqual(['Hel', 'succeeded']);
    });

    test('is let go of there where its owner does not answer for 5 s, and ends at its client', async () => {
      const world = peerReplicas();
      world.lose = (from, _to, message) => from === 'rep_a' && message?.type === 'adopted';
      const { asked, at_c } = await moved(world);
      await world.pass(5100);
      const abandoned = { job: 'job_1', attempt: 1, verdict: 'abandon' };
      expect(at_c.told).toContainEqual({ type: 'inventory.verdicts', verdicts: [abandoned] });
      await world.pass(5000);
      expect([asked.text, asked.end?.state, asked.end?.code]).toEqual(['Hel', 'failed', 'node_lost']);
    });

    test('ends at its client at once where the node is gone from there before its owner has answered', async () => {
      const world = peerReplicas();
      const { asked, c } = await moved(world);
      while (!world.said.some(({ message }) => message.type === 'adopt')) await world.pass(1);
      c.node('node_b').link = null;
      await world.pass(20);
      expect(world.said.some(({ message }) => message.type === 'adopted')).toBe(true);
      expect([asked.end?.state, asked.end?.code]).toEqual(['failed', 'node_lost']);
    });
  });

  test('says nothing any more after a stop', async () => {
    const world = peerReplicas();
    const { a, b, at_b } = two(world);
    a.ask('job_1', 'at-b');
    await world.pass(50);
    at_b.begins(at_b.offers[0]!, 'Hello');
    await world.pass(20);
    a.peers.close();
    const before = world.said.filter(({ from }) => from === a.id).length;
    // Silence is noticed after 3 to 4 s; in 6 s more it might come back.
    await world.pass(10_500);
    expect(world.said.filter(({ from }) => from === a.id)).toHaveLength(before);
    // What it held for the one that is gone is given up.
    expect(at_b.told).toMatchObject([{ type: 'job.cancel', job: 'job_1' }]);
    at_b.released(at_b.offers[0]!);
    expect([b.node('node_b').attempts.size, b.memory.held_bytes]).toEqual([0, 0]);
  });
});
