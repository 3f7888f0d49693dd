import type { Command } from 'commander';
import type { ModelDiscovery } from '@flotilla/sdk';
import { type ClientFlags, openClient, withClient } from '../client.ts';
import { CommandError, EXIT } from '../failure.ts';
import { findNode } from '../find-node.ts';
import { withExamples } from '../help.ts';
import { discoveryTable } from '../terminal/node-models.ts';
import { Progress } from '../up/progress.ts';
import { note, print, printJson } from '../terminal/output.ts';
import { table, terminalColumns } from '../terminal/table.ts';

export function addModels(program: Command): void {
  const models = program.command('models').description('the models of the fleet');
  const list = models
    .command('list')
    .description('list the models that your key can use (the default)')
    .action(listModels);
  withExamples(
    withClient(list),
    ['flotilla models', 'one line a model'],
    ['flotilla chat -m MODEL hello', 'talks to one of them'],
  );

  const discover = models
    .command('discover <node>')
    .description('ask a node for its models now, and tell what each of its backends says')
    .option('--backend <id>', 'only this one of its backends')
    .action(discoverModels);
  withExamples(
    withClient(discover),
    ['flotilla models discover attic', 'after a model was pulled there, or a server started'],
    ['flotilla models discover attic --backend ollama', 'ends with 1, and says why, where there is no list'],
    ['flotilla nodes models attic', 'the last lists, without asking'],
  );
}

async function discoverModels(node: string, flags: ClientFlags & { backend?: string }): Promise<void> {
  const client = await openClient(flags);
  const found = await findNode(client, node);
  const { backend } = flags;
  const asked = await client.models.discover(found.id, backend === undefined ? {} : { backend });
  const progress = new Progress(flags.json === true);
  const told = await client.models.discovered(asked, (now) =>
    progress.tell(`${found.name}: ${progressOf(now)}`),
  );
  progress.clear();
  if (flags.json) {
    printJson(told);
    if (told.state !== 'completed') process.exitCode = EXIT.failed;
    return;
  }
  if (told.backends.length > 0) print(discoveryTable(told));
  if (told.state !== 'completed') throw new CommandError(told.message ?? `The discovery ${told.state}.`);
}

function progressOf({ stage, waiting_for, backend }: ModelDiscovery): string {
  const which = waiting_for ?? backend ?? 'its model servers';
  switch (stage) {
    case 'pending':
      return 'asked; waiting for it to take the request';
    case 'claimed':
      return 'has taken the request';
    case 'connecting':
      return `is connecting to ${which}`;
    case 'identifying':
      return `is finding out what ${which} is`;
    case 'listing':
      return `${which} is listing its models`;
  }
}

async function listModels(flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const models = await client.models.list();
  if (flags.json) return printJson(models);
  if (models.length === 0) return note('There is no model yet. See what the nodes say: flotilla nodes');
  const columns = [
    { head: 'MODEL', cell: ({ id }: { id: string }) => id, whole: true },
    { head: 'OWNED BY', cell: ({ owned_by }: { owned_by: string }) => owned_by, flexible: true },
  ];
  print(table(models, columns, terminalColumns()));
}
