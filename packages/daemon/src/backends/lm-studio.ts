import type { Model } from '@flotilla/protocol';
import { type Kind, type Listed, type Server } from './kind.ts';
import { model, operationsByName, readEntries, TEXT_OPERATIONS } from './model-list.ts';

/**
 * LM Studio. `/v1/models` lists what its OpenAI API serves (everything downloaded when it loads on demand, otherwise
 * only what is loaded); its own `/api/v0/models` tells type, state and context of each. It answers unknown paths with
 * status 200 and an `error`, so nothing here trusts a status alone. It tells neither version nor slots.
 */
export const lmStudio: Kind = {
  name: 'lm-studio',
  usual_port: 1234,
  async recognise({ root }) {
    const listed = readEntries(await root('/api/v0/models'), 'models', 'data', ['id']);
    return (
      listed.ok &&
      listed.entries.some((entry) => entry['state'] === 'loaded' || entry['state'] === 'not-loaded')
    );
  },
  open(server) {
    return { list: () => list(server) };
  },
};

async function list(server: Server): Promise<Listed> {
  const [served, described] = await Promise.all([server.api('/models'), server.root('/api/v0/models')]);
  const listed = readEntries(served, 'GET /v1/models', 'data', ['id']);
  if (!listed.ok) return listed;
  const facts = readEntries(described, 'GET /api/v0/models', 'data', ['id']);
  if (!facts.ok) return facts;
  const byId = new Map(facts.entries.map((entry) => [entry.id, entry]));
  return {
    ok: true,
    listing: {
      models: listed.entries.map((entry): Model => {
        const fact = byId.get(entry.id);
        const loaded = fact === undefined ? undefined : fact['state'] === 'loaded';
        const operations =
          fact === undefined
            ? operationsByName(entry.id)
            : fact['type'] === 'embeddings'
              ? (['embeddings'] as const)
              : TEXT_OPERATIONS;
        const context =
          loaded === true ? (fact?.['loaded_context_length'] ?? fact?.['max_context_length']) : undefined;
        return model(entry.id, [...operations], { loaded, context });
      }),
      loads_on_demand: true,
    },
  };
}
