import type { Model } from '@flotilla/protocol';
import { failed, type Kind, type Listed, type Server } from './kind.ts';
import { type Entry, isObject, model, operationsByName, readEntries } from './model-list.ts';

/**
 * Any other server with OpenAI's API: `GET {base}/models` is all there is to ask. One that lists several models may
 * swap them in and out of memory (llama-swap, LocalAI), and says nothing of it: it counts as loading on demand.
 */
export const openai: Kind = {
  name: 'openai',
  usual_port: null,
  async recognise(_server, models) {
    return readEntries(models, 'models', 'data', ['id']).ok;
  },
  open(server) {
    return { list: () => list(server) };
  },
};

async function list(server: Server): Promise<Listed> {
  const listed = readEntries(await server.api('/models'), 'GET /v1/models', 'data', ['id']);
  if (!listed.ok) return listed;
  if (listed.entries.some((entry) => entry['owned_by'] === 'flotilla')) {
    return failed('It is a Flotilla control plane, not a model server: requests would go in circles.');
  }
  return {
    ok: true,
    listing: {
      models: listed.entries.map(
        (entry): Model => model(entry.id, operationsByName(entry.id), { context: contextOf(entry) }),
      ),
      loads_on_demand: listed.entries.length > 1,
      // A simulated server never passes for a real one, in no table and on no dashboard.
      ...(listed.entries.some((entry) => entry['owned_by'] === 'flotilla-sim')
        ? { calls_itself: 'sim' }
        : {}),
    },
  };
}

/** Not in OpenAI's API, but many servers say it, under one of these names. */
function contextOf(entry: Entry): unknown {
  const meta = isObject(entry['meta']) ? entry['meta'] : {};
  return entry['max_model_len'] ?? entry['context_length'] ?? entry['context_window'] ?? meta['n_ctx_train'];
}
