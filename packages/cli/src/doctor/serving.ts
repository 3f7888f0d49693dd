import { type Flotilla, FlotillaApiError, type Node } from '@flotilla/sdk';
import { plural } from '../terminal/text.ts';
import { type Check, textOf } from './check.ts';
import { ms } from './reach.ts';

/** The nodes, and one request all the way to a model and back. */
export async function checkServing(
  client: Flotilla,
  rtt_ms: number,
  wanted: string | undefined,
): Promise<Check[]> {
  let nodes: Node[];
  try {
    nodes = await client.nodes.list({ limit: 500 }).take(1000);
  } catch (error) {
    if (!(error instanceof FlotillaApiError) || error.status !== 403) throw error;
    return [
      check('nodes', 'skip', 'this key may not see them (scope nodes:read)'),
      await probe(client, wanted, [], rtt_ms),
    ];
  }
  return [...roster(nodes), await probe(client, wanted ?? loadedModel(nodes), nodes, rtt_ms)];
}

const check = (name: string, state: Check['state'], found: string, next?: string): Check => ({
  area: 'nodes',
  name,
  state,
  found,
  ...(next === undefined ? {} : { next }),
});

function roster(nodes: readonly Node[]): Check[] {
  if (nodes.length === 0) {
    return [
      check('nodes', 'warn', 'no machine has joined', 'flotilla tokens create; then flotilla join there'),
    ];
  }
  const online = nodes.filter((node) => node.state === 'online');
  const checks = [
    online.length === 0
      ? check('nodes', 'fail', `none of ${plural(nodes.length, 'node')} is online`, 'flotilla nodes says why')
      : check('nodes', 'ok', `${online.length} of ${plural(nodes.length, 'node')} online`),
  ];
  for (const node of nodes) {
    if (node.state === 'online' && node.health === 'healthy' && node.why.alarms.length === 0) continue;
    if (node.state === 'revoked') continue;
    // The summary begins with the state, and has the first of what fails.
    const { summary, failing_probes, alarms } = node.why;
    const said = [summary, ...failing_probes.slice(1), ...alarms].join('; ');
    checks.push(check(node.name, 'warn', said, `flotilla nodes show ${node.name}`));
  }
  return checks;
}

/** Servers of these kinds have their models in memory always. */
const ALWAYS_LOADED = new Set(['vllm', 'llama-cpp', 'sim']);

/** A model that is in memory: asking for another could put out the one that somebody uses. */
function loadedModel(nodes: readonly Node[]): string | undefined {
  for (const node of nodes) {
    if (node.state !== 'online' || node.cordoned) continue;
    for (const backend of node.backends) {
      const always = ALWAYS_LOADED.has(backend.kind) || backend.models.length === 1;
      for (const model of backend.models) {
        const there = model.loaded === true || (model.loaded === null && always);
        if (there && model.allowed && model.health === 'healthy' && model.operations.includes('chat'))
          return model.id;
      }
    }
  }
  return undefined;
}

async function probe(
  client: Flotilla,
  model: string | undefined,
  nodes: readonly Node[],
  rtt_ms: number,
): Promise<Check> {
  if (model === undefined) {
    return check('a request', 'skip', 'no model is known to be in memory; name one to ask: --model');
  }
  const body = { model, messages: [{ role: 'user', content: 'Say hi.' }], max_tokens: 8, stream: true };
  try {
    const began = performance.now();
    const reply = await client.open('chat', { body, signal: AbortSignal.timeout(120_000) });
    let first_ms: number | null = null;
    let text = '';
    for await (const chunk of reply.body!) {
      first_ms ??= performance.now() - began;
      text = (text + Buffer.from(chunk).toString()).slice(-200);
    }
    const all_ms = performance.now() - began;
    if (first_ms === null || !text.includes('[DONE]')) {
      return check('a request', 'fail', `${model} began to answer and did not end`, 'flotilla jobs list');
    }
    const name = reply.headers.get('x-flotilla-node');
    const queue_ms = Number(reply.headers.get('x-flotilla-queue-ms') ?? 0);
    const link_ms = nodes.find((node) => node.name === name)?.link_rtt_ms ?? null;
    return check('a request', 'ok', hops({ model, name, first_ms, all_ms, rtt_ms, queue_ms, link_ms }));
  } catch (error) {
    return check(
      'a request',
      'fail',
      `${model} does not answer: ${textOf(error)}`,
      'flotilla nodes; flotilla jobs list',
    );
  }
}

interface Hops {
  model: string;
  name: string | null;
  first_ms: number;
  all_ms: number;
  rtt_ms: number;
  queue_ms: number;
  link_ms: number | null;
}

/** Where the time to the first byte went; what is not the way, the queue or the link is the backend's. */
function hops({ model, name, first_ms, all_ms, rtt_ms, queue_ms, link_ms }: Hops): string {
  const rest_ms = Math.max(0, first_ms - rtt_ms - queue_ms - (link_ms ?? 0));
  const way = [
    `${ms(rtt_ms)} to the control plane`,
    `${ms(queue_ms)} waiting`,
    ...(link_ms === null ? [] : [`${ms(link_ms)} on to the node`]),
    `${ms(rest_ms)} ${link_ms === null ? 'at the node and in its backend' : 'in its backend'}`,
  ];
  const where = name === null ? '' : ` on ${name}`;
  return `${model}${where} answers: first byte after ${ms(first_ms)} (${way.join(', ')}), all after ${ms(all_ms)}`;
}
