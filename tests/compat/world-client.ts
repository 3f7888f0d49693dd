import type { NodeView } from '@flotilla/protocol';
import type { World } from '../support/world.ts';
import type { Client } from './conversation.ts';

/** The client of a conversation, in a world where it is held. */
export function clientOf({ plane }: World, node_id: string, stopNode: () => void): Client {
  return {
    node_id,
    chat: (body, init) => plane.chat(body, init),
    post: (path, body) => plane.send('POST', path, body),
    stopNode,
    nodeState: async () => (await plane.get<NodeView>(`/api/v1/nodes/${node_id}`)).state,
  };
}
