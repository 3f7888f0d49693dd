import type { ControlConfig, RunningControl } from '@flotilla/control';
import type { Flotilla } from '@flotilla/sdk';
import { facts } from '../terminal/table.ts';
import type { AdminKey } from './admin-key.ts';
import { curlFor, reachOf } from './advice.ts';
import type { Part } from './part.ts';
import type { StartedNode, UpFlags } from './run.ts';
import type { Servable } from './servable.ts';

/** In a clone no shell finds `flotilla`, as the lines above it have it. */
const END = import.meta.url.endsWith('.ts')
  ? 'Ctrl-C stops it. In this clone, write npx flotilla for flotilla: npx flotilla --help'
  : 'Ctrl-C stops it. What else there is: flotilla --help';

interface Started {
  flags: UpFlags;
  client: Flotilla;
  config: ControlConfig;
  control: RunningControl;
  key: AdminKey;
  node: StartedNode | undefined;
  parts: Part[];
  /** What to try, or why there is nothing; undefined without a node. */
  servable: Servable | string | undefined;
}

/** What `flotilla up` prints when it is up: where it is, what to try, how others join. */
export async function summary(started: Started): Promise<string> {
  if (started.flags.json) return JSON.stringify(event(started));
  const sections = [whereText(started), tryText(started), await joinText(started), END];
  return `${sections.join('\n\n')}\n`;
}

function event({ control, key, node, servable, parts }: Started): object {
  const model = typeof servable === 'object' ? servable.model : null;
  return {
    event: 'ready',
    url: control.url,
    admin_key_path: key.path,
    node: node ? { id: node.local.id, name: node.local.name } : null,
    model,
    simulated: node?.simulated !== undefined,
    processes: parts.map(({ name, pid }) => ({ name, pid })),
    ...(typeof servable === 'string' ? { no_model_because: servable } : {}),
  };
}

function whereText({ config, control, key, node }: Started): string {
  // A key in a log would be known to all who read logs.
  const shown = process.stdout.isTTY && key.fresh ? `${key.path}  (${key.key})` : key.path;
  return `Flotilla is up.\n\n${facts([
    ['API', control.listening],
    ['OpenAI base URL', `${config.public_url ?? control.url}/v1`],
    ['Admin key', shown],
    ['Data', config.data_dir],
    [
      'Store',
      config.database_url === undefined
        ? 'embedded: an acknowledged write survives the death of a process'
        : 'PostgreSQL: an acknowledged write survives power loss',
    ],
    ['Node', node && nodeText(node)],
  ])}`;
}

function nodeText({ local, simulated }: StartedNode): string {
  if (simulated === undefined) return local.name;
  return `${local.name}, with a SIMULATED model server (no real model) at ${simulated}`;
}

function tryText({ control, key, node, servable }: Started): string {
  if (typeof servable === 'object') {
    const hint =
      node?.simulated === undefined
        ? ''
        : '\n\nFor real answers start Ollama, llama.cpp, vLLM or LM Studio; the node finds them.';
    return `Try it:\n  ${curlFor(control.url, key.path, servable)}${hint}`;
  }
  if (servable === undefined) return 'No node runs on this machine: those that join bring the models.';
  return [
    `No model can be served yet: ${servable}`,
    '  flotilla nodes         says how it goes on',
    `  ${node?.local.part.log ?? ''}   is the node's log`,
  ].join('\n');
}

async function joinText({ client, config, control }: Started): Promise<string> {
  const reach = reachOf(config.host, control.port, config.public_url);
  if (reach.url === null) return reach.advice.join('\n');
  const command = (token: string) =>
    `  flotilla join ${reach.url} --token ${token}${reach.insecure ? ' --insecure' : ''}`;
  const why = reach.insecure
    ? '\n(--insecure: the way there is plain http. Do that in a private network only.)'
    : '';
  // A token is a secret: it is made for who looks on, and for no log.
  if (!process.stdout.isTTY) {
    return `Another machine joins with a token (flotilla tokens create):\n${command('fle_…')}${why}`;
  }
  const { token } = await client.tokens.create();
  return `Another machine joins with this, once, within an hour:\n${command(token)}${why}`;
}
