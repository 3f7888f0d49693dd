import { describe, expect, test } from 'vitest';
import { type WorldOptions, World } from './world.ts';

/** What the simulator has found, made to happen on purpose: in some worlds each, since all else is left to chance. */
async function violations(trouble: NonNullable<WorldOptions['trouble']>, worlds = 12): Promise<unknown[]> {
  const found: unknown[] = [];
  for (let seed = 1; seed <= worlds; seed++) {
    const { violation } = await new World({ seed, trouble }).run();
    if (violation !== null) found.push({ seed, ...violation });
  }
  return found;
}

/** They compute and never wait: on a busy machine for as long as that takes. */
describe('every promise holds', { timeout: 300_000 }, () => {
  test('where a machine sleeps again and again for a little longer than its lease', async () => {
    const found = await violations(({ nodes, scheduler, heartbeat_ms, chance }) => {
      const { machine } = nodes[0]!.options;
      for (let at_ms = 1000; at_ms < 9000; at_ms += 3.2 * heartbeat_ms + chance.between(50, 600)) {
        scheduler.at(at_ms, () => machine.sleep(3 * heartbeat_ms, 'goes'));
      }
    });
    expect(found).toEqual([]);
  });

  test('where a control plane dies with an epoch of a node that is linked elsewhere', async () => {
    const found = await violations(({ nodes, replicas, store, scheduler }) => {
      scheduler.at(4000, () => {
        for (const { options } of nodes) void store.atOnce().takeEpochs('rep_dead', [options.id]);
        for (const replica of replicas.slice(1)) replica.crash();
      });
    });
    expect(found).toEqual([]);
  });

  test('where another daemon with its credential takes the place of a node as its control plane goes', async () => {
    const found = await violations((world) => {
      const { nodes, replicas, scheduler, chance } = world;
      for (const [at, replica] of replicas.entries()) {
        scheduler.at(2500 + 3000 * at, () => {
          replica.stop();
          for (const node of nodes) world.addTwin(node, chance);
        });
      }
    }, 40);
    expect(found).toEqual([]);
  });

  test('where links end without a word while work is offered on them', async () => {
    const found = await violations(({ nodes, replicas, network, scheduler, chance }) => {
      for (const { name } of nodes) {
        for (let at_ms = 500; at_ms < 9000; at_ms += chance.between(300, 3000)) {
          scheduler.at(at_ms, () => replicas.forEach(({ address }) => network.sever(name, address)));
        }
      }
    }, 25);
    expect(found).toEqual([]);
  });
});
