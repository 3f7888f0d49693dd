import { FlotillaError } from '@flotilla/protocol';
import type { Discoveries } from '../discovery/discoveries.ts';
import { discoveryView, nodeModelsView } from '../discovery/view.ts';
import type { FleetNode } from '../fleet/node.ts';
import type { Roster } from '../fleet/roster.ts';
import { knownId, notFound } from './paging.ts';
import type { Handlers } from './routing.ts';

export function discoveryRoutes(
  discoveries: Discoveries,
  roster: Pick<Roster, 'find'>,
): Pick<Handlers, 'discoverModels' | 'showDiscovery' | 'nodeModels'> {
  return {
    async discoverModels({ params: { id }, body }) {
      const node = nodeOf(id);
      const backend = body.backend ?? null;
      if (backend !== null) refuseUnknown(node, backend);
      const record = await discoveries.ask(node.id, backend);
      if (record === undefined) throw notFound('node', id);
      return discoveryView(record, node.record.name);
    },

    async showDiscovery({ params: { id }, query: { wait_ms, stage }, reply }) {
      const known = knownId('discovery', id, 'model discovery');
      const gone = new AbortController();
      const left = () => gone.abort();
      reply.raw.once('close', left);
      try {
        const record = await discoveries.wait(known, { wait_ms, stage, gone: gone.signal });
        if (record === undefined) throw notFound('model discovery', id);
        return discoveryView(record, roster.find(record.node)?.record.name ?? record.node);
      } finally {
        reply.raw.off('close', left);
      }
    },

    async nodeModels({ params: { id } }) {
      const node = nodeOf(id);
      return nodeModelsView(node, await discoveries.catalogues(node.id));
    },
  };

  function nodeOf(id: string): FleetNode {
    const node = roster.find(knownId('node', id, 'node'));
    if (node === undefined) throw notFound('node', id);
    return node;
  }
}

/** A name that the node never had is a slip of the pen; before its first link nobody knows which it has. */
function refuseUnknown({ descriptor, record }: FleetNode, backend: string): void {
  if (descriptor === null || descriptor.backends.some(({ id }) => id === backend)) return;
  const names = descriptor.backends.map(({ id }) => id).join(', ');
  throw new FlotillaError(
    'not_found',
    `Node ${record.name} has no backend ${JSON.stringify(backend)}; it has ${names === '' ? 'none' : names}.`,
    { param: 'backend' },
  );
}
