import type { Command } from 'commander';
import { type ClientFlags, openClient, withClient } from '../client.ts';
import { withExamples } from '../help.ts';
import { note, print, printJson } from '../terminal/output.ts';
import { table, terminalColumns } from '../terminal/table.ts';

export function addModels(program: Command): void {
  const models = program.command('models').description('models that can be used now');
  const list = models
    .command('list')
    .description('list the models that your key can use (the default)')
    .action(listModels);
  withExamples(
    withClient(list),
    ['flotilla models', 'one line a model'],
    ['flotilla chat -m MODEL hello', 'talks to one of them'],
  );
}

async function listModels(flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const models = await client.models.list();
  if (flags.json) return printJson(models);
  if (models.length === 0) return note('No model can be used now. See what the nodes say: flotilla nodes');
  const columns = [
    { head: 'MODEL', cell: ({ id }: { id: string }) => id, whole: true },
    { head: 'OWNED BY', cell: ({ owned_by }: { owned_by: string }) => owned_by, flexible: true },
  ];
  print(table(models, columns, terminalColumns()));
}
