import type { NodeMessageOf } from '@flotilla/protocol';
import { PROTOCOL_VERSION } from '@flotilla/protocol';
import { expect, test } from 'vitest';
import { nodeRecord, peerReplicas } from '../testing/peer-replicas.ts';
import { admit } from './registration.ts';

test('a process that has gone while another replica was asked takes no epoch from the node’s own link', async () => {
  const world = peerReplicas();
  const { clock } = world;
  const node = world.replica('rep_a', [nodeRecord('node_a', 'm', 1)]).node('node_a');
  const protocol = { min: PROTOCOL_VERSION, max: PROTOCOL_VERSION };
  const message = { type: 'node.register', boot_id: 'boot', protocol } as NodeMessageOf<'node.register'>;
  const taken: string[] = [];
  const register = (leaves: boolean) => {
    let gone = false;
    const inUseElsewhere = async () => {
      gone = leaves;
      return false;
    };
    const epochs = { take: async (id: string) => taken.push(id) };
    return admit({ clock, epochs, inUseElsewhere }, node, message, {}, () => gone);
  };
  expect(await register(true)).toBeUndefined();
  expect(taken).toEqual([]);
  expect(await register(false)).toEqual({ epoch: 1 });
});
