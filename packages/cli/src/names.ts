import { type Flotilla, FlotillaApiError } from '@flotilla/sdk';

/** Turns ids into the names that people know; an id that is not known, or may not be looked up, stays as it is. */
export type NameOf = (id: string) => string;

async function nodeNames(client: Flotilla): Promise<NameOf> {
  return namesIn(client.nodes.list({ limit: 500 }));
}

/** Of what serves: nodes and providers. */
export async function serverNames(client: Flotilla): Promise<NameOf> {
  const [nodeName, providerName] = await Promise.all([
    nodeNames(client),
    namesIn(client.providers.list({ limit: 500 })),
  ]);
  return (id) => providerName(nodeName(id));
}

export async function keyNames(client: Flotilla): Promise<NameOf> {
  return namesIn(client.keys.list({ limit: 500 }));
}

async function namesIn(list: AsyncIterable<{ id: string; name: string }>): Promise<NameOf> {
  const names = new Map<string, string>();
  try {
    for await (const { id, name } of list) names.set(id, name);
  } catch (error) {
    // A key for inference alone may see its own usage, but not the roster; an older server has no providers.
    if (!(error instanceof FlotillaApiError) || (error.status !== 403 && error.status !== 404)) throw error;
  }
  return (id) => names.get(id) ?? id;
}
