import { setTimeout as wait } from 'node:timers/promises';
import type { Flotilla, Node } from '@flotilla/sdk';

export interface Servable {
  model: string;
  operation: 'chat' | 'completions' | 'embeddings';
  backend: string;
  kind: string;
}

const LOOK_EVERY_MS = 100;
const PREFERENCE = ['chat', 'completions', 'embeddings'] as const;

/**
 * Waits until the node can serve a model.
 * @param signal ends the waiting: its reason is thrown
 * @param isRunning whether its process is there; without it there is nothing to wait for
 * @param tell told why not yet, whenever that changes
 * @returns the model, or the last reason why there is none
 */
export async function waitServable(
  client: Flotilla,
  node_id: string,
  patience_ms: number,
  signal: AbortSignal,
  isRunning: () => boolean,
  tell: (reason: string) => void,
): Promise<Servable | string> {
  const give_up_at = performance.now() + patience_ms;
  let reason = '';
  for (;;) {
    if (!isRunning()) return 'the node has ended.';
    const node = await client.nodes.show(node_id, { signal });
    const servable = node.state === 'online' ? pick(node) : undefined;
    if (servable) return servable;
    const now = whyNot(node);
    if (now !== reason) tell(now);
    reason = now;
    if (performance.now() >= give_up_at) return reason;
    // Aborted, it rejects with an error of its own; what the signal says is what the caller knows.
    await wait(LOOK_EVERY_MS, undefined, { signal }).catch(() => signal.throwIfAborted());
  }
}

/** A healthy model to try: one to chat with rather than another, a loaded one rather than one still on disk. */
function pick(node: Node): Servable | undefined {
  const candidates = node.backends.flatMap((backend) =>
    backend.models
      .filter((model) => model.allowed && model.health === 'healthy')
      .flatMap((model) => {
        const operation = PREFERENCE.find((known) => model.operations.includes(known));
        const found = {
          model: model.id,
          backend: backend.id,
          kind: backend.kind,
          loaded: model.loaded === true,
        };
        return operation ? [{ ...found, operation }] : [];
      }),
  );
  const rank = ({ operation, loaded }: { operation: Servable['operation']; loaded: boolean }) =>
    PREFERENCE.indexOf(operation) * 2 + (loaded ? 0 : 1);
  return candidates.sort((a, b) => rank(a) - rank(b))[0];
}

function whyNot(node: Node): string {
  if (node.state !== 'online')
    return `the node is ${node.why.summary.startsWith(node.state) ? '' : `${node.state}: `}${node.why.summary}`;
  if (node.backends.length === 0) return 'the node has found no model server.';
  const sick = node.backends.find(({ health }) => health !== 'healthy');
  if (sick) return `${sick.id} is ${sick.health}: ${sick.reason ?? 'it has not said why.'}`;
  const models = node.backends.flatMap(({ models: all }) => all);
  if (models.length === 0) return 'the model servers have no model yet.';
  const doubtful = models.find(({ health, reason }) => health !== 'healthy' && reason !== null);
  return doubtful
    ? `${doubtful.id} is ${doubtful.health}: ${doubtful.reason}`
    : 'no model has proved itself yet.';
}
