import type { NodeView } from '@flotilla/protocol';
import { linkedNode, type LinkedNode, MOST_BYTES, type Questions } from '../bus/questions.ts';
import type { FleetNode } from './node.ts';
import type { Roster } from './roster.ts';

/**
 * What the replica with a node's link alone knows of it: its beats, its slots in use, what its daemon warns of. The others
 * ask for it when they are asked.
 */
export interface LinkedViewsDeps {
  roster: Pick<Roster, 'find'>;
  questions: Pick<Questions, 'ask' | 'on'>;
  view: (node: FleetNode) => NodeView;
}

/** Of one question: a page of a listing has about as many. */
const NODES_MOST = 200;
/** Leaves room for the last one and for what is around them. */
const FITS_BYTES = MOST_BYTES / 2;

/** @returns what brings views up to date with what other replicas say; one that does not answer leaves them as they are */
export function createLinkedViews({ roster, questions, view }: LinkedViewsDeps) {
  questions.on('nodes', ({ nodes }) => {
    const linked: LinkedNode[] = [];
    let bytes = 0;
    for (const id of nodes) {
      const node = roster.find(id);
      if (node === undefined || node.link === null) continue;
      const known = linkedNode.parse({ ...view(node), in_flight: node.ledger.holders.size });
      bytes += Buffer.byteLength(JSON.stringify(known));
      if (bytes > FITS_BYTES) break;
      linked.push(known);
    }
    return linked;
  });

  return async function complete(views: NodeView[]): Promise<NodeView[]> {
    const by_replica = new Map<string, string[]>();
    for (const { id } of views) {
      const node = roster.find(id);
      if (node === undefined || !node.elsewhere || node.state === 'offline' || node.state === 'revoked')
        continue;
      const ids = by_replica.get(node.replica!) ?? [];
      by_replica.set(node.replica!, ids);
      ids.push(id);
    }
    const asked = [...by_replica].flatMap(([replica, ids]) =>
      chunks(ids).map((nodes) => questions.ask(replica, { type: 'nodes', nodes })),
    );
    const linked = new Map<string, LinkedNode>();
    for (const answer of await Promise.all(asked)) for (const node of answer ?? []) linked.set(node.id, node);
    return views.map((own) => {
      const there = linked.get(own.id);
      // That one may not know yet of a newer link.
      if (there === undefined || there.epoch < own.epoch) return own;
      const { in_flight, ...known } = there;
      return { ...own, ...known, drain: own.drain && { ...own.drain, in_flight } };
    });
  };
}

function chunks(ids: string[]): string[][] {
  const chunked: string[][] = [];
  for (let from = 0; from < ids.length; from += NODES_MOST) chunked.push(ids.slice(from, from + NODES_MOST));
  return chunked;
}
