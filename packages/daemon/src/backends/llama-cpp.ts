import type { Model } from '@flotilla/protocol';
import { failed, type Kind, type Listed, type Server, unanswered } from './kind.ts';
import {
  type Entry,
  isObject,
  model,
  operationsByName,
  positiveInteger,
  readEntries,
  readObject,
  shortText,
} from './model-list.ts';

/**
 * llama.cpp's server. `/health` is 503 while the model loads, though the models list already answers; `/props` tells
 * the slots, the context of each and the build. As a router over several models it says of each whether it is loaded,
 * and a request loads one, throwing out another; and it may put its one model to sleep. `/props` may want a key that
 * the rest does not: what it would have told is then simply not known.
 */
export const llamaCpp: Kind = {
  name: 'llama.cpp',
  usual_port: 8080,
  async recognise({ root }, models) {
    if (!models.ok) return false;
    if (models.headers['server']?.toLowerCase() === 'llama.cpp') return true;
    const listed = readEntries(models, 'models', 'data', ['id']);
    if (listed.ok && listed.entries.some((entry) => entry['owned_by'] === 'llamacpp')) return true;
    const props = readObject(await root('/props'), 'props');
    return props.ok && positiveInteger(props.value['total_slots']) !== undefined;
  },
  open(server) {
    return { list: () => list(server) };
  },
};

async function list(server: Server): Promise<Listed> {
  const [health, models, props] = await Promise.all([
    server.root('/health'),
    server.api('/models'),
    server.root('/props'),
  ]);
  if (!health.ok) return unanswered('GET /health', health);
  if (health.status === 503) return failed('It is still loading its model.');
  if (health.status === 404) return failed('It no longer answers as llama.cpp.');
  const listed = readEntries(models, 'GET /v1/models', 'data', ['id']);
  if (!listed.ok) return listed;

  const told = readObject(props, 'GET /props');
  const facts = told.ok ? told.value : {};
  const generation = isObject(facts['default_generation_settings'])
    ? facts['default_generation_settings']
    : {};
  const router = listed.entries.some((entry) => routerStatus(entry) !== undefined);
  const asleep = facts['is_sleeping'] === true;
  const version = shortText(facts['build_info']);
  const slots = router ? undefined : positiveInteger(facts['total_slots']);
  return {
    ok: true,
    listing: {
      models: listed.entries.map((entry): Model => {
        const status = routerStatus(entry);
        const loaded = status === undefined ? !asleep : status === 'loaded';
        return model(entry.id, operationsByName(entry.id), {
          loaded,
          context: router ? undefined : generation['n_ctx'],
        });
      }),
      loads_on_demand: router,
      ...(version === undefined ? {} : { version }),
      ...(slots === undefined ? {} : { slots }),
    },
  };
}

function routerStatus(entry: Entry): unknown {
  return isObject(entry['status']) ? entry['status']['value'] : undefined;
}
