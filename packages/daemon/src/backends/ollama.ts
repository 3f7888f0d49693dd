import type { Model, Operation } from '@flotilla/protocol';
import type { Asked } from './ask.ts';
import { type Kind, type Listed, type Server } from './kind.ts';
import {
  type Entry,
  isObject,
  model,
  operationsByName,
  readEntries,
  readObject,
  shortText,
  TEXT_OPERATIONS,
} from './model-list.ts';

/**
 * Ollama. `/api/tags` lists what is on disk, `/api/ps` what is in memory, `/api/show` what a model can do (asked once
 * for each digest: it reads the disk, but loads nothing). A request loads its model and may throw out another. How
 * many run at once (`OLLAMA_NUM_PARALLEL`) it tells nobody.
 *
 * The context length is that of the loaded instance: the model's own maximum is not what a request gets here.
 */
export const ollama: Kind = {
  name: 'ollama',
  usual_port: 11434,
  async recognise({ root }) {
    const [version, tags] = await Promise.all([root('/api/version'), root('/api/tags')]);
    const named = readObject(version, 'version');
    return (
      named.ok &&
      typeof named.value['version'] === 'string' &&
      readEntries(tags, 'tags', 'models', ['model', 'name']).ok
    );
  },
  open(server) {
    const known = new Map<string, Operation[]>();
    return { list: () => list(server, known) };
  },
};

async function list(server: Server, known: Map<string, Operation[]>): Promise<Listed> {
  const [tags, ps, version] = await Promise.all([
    server.root('/api/tags'),
    server.root('/api/ps'),
    server.root('/api/version'),
  ]);
  const listed = readEntries(tags, 'GET /api/tags', 'models', ['model', 'name']);
  if (!listed.ok) return listed;
  const loaded = readEntries(ps, 'GET /api/ps', 'models', ['model', 'name']);
  // Without it nobody knows what a probe would throw out, nor what placement should prefer.
  if (!loaded.ok) return loaded;

  await learnOperations(server, listed.entries, known);
  const inMemory = new Map(loaded.entries.map((entry) => [entry.id, entry]));
  const models = listed.entries.map((entry): Model => {
    const running = inMemory.get(entry.id);
    const operations = known.get(digestOf(entry)) ?? operationsFromDetails(entry);
    // Models that Ollama passes on to its cloud are on no disk and in no memory here.
    const here = entry['remote_host'] === undefined;
    return model(entry.id, operations, {
      loaded: here ? running !== undefined : undefined,
      context: running?.['context_length'],
    });
  });
  const told = readObject(version, 'GET /api/version');
  const name = told.ok ? shortText(told.value['version']) : undefined;
  return {
    ok: true,
    listing: { models, loads_on_demand: true, ...(name === undefined ? {} : { version: name }) },
  };
}

/** Four questions at a time, so that a first look at a full disk does not hold up the owner's own work. */
async function learnOperations(
  server: Server,
  entries: Entry[],
  known: Map<string, Operation[]>,
): Promise<void> {
  const waiting = entries.filter((entry) => !known.has(digestOf(entry)));
  const ask = async () => {
    for (let entry = waiting.pop(); entry !== undefined; entry = waiting.pop()) {
      const operations = operationsOf(await server.root('/api/show', { body: { model: entry.id } }));
      if (operations !== null) known.set(digestOf(entry), operations);
    }
  };
  await Promise.all([ask(), ask(), ask(), ask()]);
}

/** Older versions have no capabilities: then the model's family tells. */
function operationsOf(asked: Asked): Operation[] | null {
  const shown = readObject(asked, 'POST /api/show');
  if (!shown.ok || !Array.isArray(shown.value['capabilities'])) return null;
  const capabilities: unknown[] = shown.value['capabilities'];
  const operations: Operation[] = [];
  if (capabilities.includes('completion')) operations.push(...TEXT_OPERATIONS);
  if (capabilities.includes('embedding')) operations.push('embeddings');
  return operations.length === 0 ? null : operations;
}

function operationsFromDetails(entry: Entry): Operation[] {
  const details = isObject(entry['details']) ? entry['details'] : {};
  const family = details['family'];
  const embeds = typeof family === 'string' && family.includes('bert');
  return embeds ? ['embeddings'] : operationsByName(entry.id);
}

function digestOf(entry: Entry): string {
  return typeof entry['digest'] === 'string' ? entry['digest'] : entry.id;
}
