/** Which node served a session last, so that the next turn finds its prefix in that node's cache. The oldest go first. */
const SESSIONS_MOST = 20_000;

export interface Affinity {
  node(key: string, session: string): string | null;
  served(key: string, session: string, node: string): void;
}

export function createAffinity(): Affinity {
  const nodes = new Map<string, string>();
  return {
    node: (key, session) => nodes.get(`${key} ${session}`) ?? null,
    served(key, session, node) {
      const name = `${key} ${session}`;
      nodes.delete(name);
      nodes.set(name, node);
      if (nodes.size > SESSIONS_MOST) nodes.delete(nodes.keys().next().value!);
    },
  };
}
