import type { NodeView } from '@flotilla/protocol';
import type { Fleet } from '../fleet/fleet.ts';
import { iso } from './iso.ts';
import { knownId, notFound, pageOfList } from './paging.ts';
import { type Handlers, present } from './routing.ts';

type NodeRoutes =
  | 'listNodes'
  | 'showNode'
  | 'updateNode'
  | 'cordonNode'
  | 'uncordonNode'
  | 'drainNode'
  | 'rotateNode'
  | 'revokeNode'
  | 'deleteNode';

export function nodeRoutes(fleet: Fleet): Pick<Handlers, NodeRoutes> {
  const shown = async (id: string, node: NodeView | undefined) =>
    (await fleet.complete([found(id, node)]))[0]!;
  return {
    async listNodes({ query }) {
      const { items, next_after } = pageOfList(
        fleet.list(),
        query,
        (node) => node.name,
        (node, after) => node.name.localeCompare(after) > 0,
      );
      return { data: await fleet.complete(items), next_after };
    },
    showNode: ({ params: { id } }) => shown(id, fleet.find(nodeId(id))),
    updateNode: async ({ params: { id }, body }) => shown(id, await fleet.update(nodeId(id), present(body))),
    cordonNode: async ({ params: { id } }) => shown(id, await fleet.cordon(nodeId(id), true)),
    uncordonNode: async ({ params: { id } }) => shown(id, await fleet.cordon(nodeId(id), false)),
    drainNode: async ({ params: { id }, body }) => shown(id, await fleet.drain(nodeId(id), body.deadline_ms)),
    async rotateNode({ params: { id }, body }) {
      const rotated = found(id, await fleet.rotate(nodeId(id), body.overlap_ms));
      return { ...rotated, old_expires_at: iso(rotated.old_expires_at) };
    },
    revokeNode: async ({ params: { id } }) => shown(id, await fleet.revoke(nodeId(id))),
    async deleteNode({ params: { id } }) {
      if (!(await fleet.forget(nodeId(id)))) throw notFound('node', id);
    },
  };
}

function nodeId(id: string): NodeView['id'] {
  return knownId('node', id, 'node');
}

function found<T>(id: string, node: T | undefined): T {
  if (node === undefined) throw notFound('node', id);
  return node;
}
