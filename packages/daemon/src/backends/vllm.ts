import type { Model } from '@flotilla/protocol';
import { failed, type Kind, type Listed, type Server } from './kind.ts';
import { model, operationsByName, readEntries, readObject, shortText } from './model-list.ts';

/**
 * vLLM. Serves one model (and its adapters) that it loaded at its start, so a probe can throw out nothing. It tells
 * the longest context, but neither how many requests it batches nor whether a model is for embeddings: a probe that is
 * refused as chat finds that out.
 */
export const vllm: Kind = {
  name: 'vllm',
  usual_port: 8000,
  async recognise({ root }, models) {
    const listed = readEntries(models, 'models', 'data', ['id']);
    if (!listed.ok) return false;
    if (listed.entries.some((entry) => entry['owned_by'] === 'vllm')) return true;
    if (!listed.entries.some((entry) => 'max_model_len' in entry)) return false;
    const version = readObject(await root('/version'), 'version');
    return version.ok && typeof version.value['version'] === 'string';
  },
  open(server) {
    return { list: () => list(server) };
  },
};

async function list(server: Server): Promise<Listed> {
  const [models, version] = await Promise.all([server.api('/models'), server.root('/version')]);
  const listed = readEntries(models, 'GET /v1/models', 'data', ['id']);
  if (!listed.ok) return listed;
  const told = readObject(version, 'GET /version');
  const name = told.ok ? shortText(told.value['version']) : undefined;
  // Ollama too would answer the list: taken for vLLM it would be asked for proofs that load its models.
  const still = name !== undefined || listed.entries.some((entry) => entry['owned_by'] === 'vllm');
  if (!still) return failed('It no longer answers as vLLM.');
  return {
    ok: true,
    listing: {
      models: listed.entries.map(
        (entry): Model => model(entry.id, operationsByName(entry.id), { context: entry['max_model_len'] }),
      ),
      loads_on_demand: false,
      ...(name === undefined ? {} : { version: name }),
    },
  };
}
