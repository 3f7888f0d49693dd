import { type Command, Option } from 'commander';
import type { Flotilla, UsageGroup, UsageRow } from '@flotilla/sdk';
import { type ClientFlags, openClient, withClient } from '../client.ts';
import { withExamples } from '../help.ts';
import { findNode } from '../find-node.ts';
import { keyNames, type NameOf, serverNames } from '../names.ts';
import { moment, positive } from '../parse.ts';
import { ago, formatDuration } from '../terminal/moment.ts';
import { note, print, printJson } from '../terminal/output.ts';
import { type Column, table, terminalColumns } from '../terminal/table.ts';

const GROUPINGS = ['model', 'key', 'node', 'provider', 'day'] as const;

interface UsageFlags extends ClientFlags {
  by?: (typeof GROUPINGS)[number];
  model?: string;
  key?: string;
  node?: string;
  since?: string;
  until?: string;
  limit: number;
}

export function addUsage(program: Command): void {
  const usage = program
    .command('usage')
    .description('settled requests and their tokens: row by row, or added up with --by')
    .addOption(new Option('--by <what>', 'add up').choices(GROUPINGS))
    .option('--model <model>', 'only for this model')
    .option('--key <id>', 'only of this key')
    .option('--node <node>', 'only on this node, by name or id')
    .option('--since <when>', 'like 24h (ago), or a date', moment)
    .option('--until <when>', 'the same', moment)
    .option('--limit <n>', 'how many rows at most', positive, 50)
    .action(showUsage);
  withExamples(
    withClient(usage),
    ['flotilla usage', 'the newest 50 requests; your own, unless you are admin'],
    ['flotilla usage --by model --since 7d', 'tokens of a week for each model'],
  );
}

async function showUsage(flags: UsageFlags): Promise<void> {
  const client = await openClient(flags);
  const { model, key, since, until, by, limit } = flags;
  const node = flags.node === undefined ? undefined : (await findNode(client, flags.node)).id;
  const filter = { model, key, node, since, until };
  if (by !== undefined) {
    const { data } = await client.usage.summary({ ...filter, by });
    if (flags.json) return printJson(data);
    if (data.length === 0) return note('No requests in that time.');
    return print(groupTable(data, by, await groupNames(client, by)));
  }
  const rows = await client.usage.list({ ...filter, limit: Math.min(limit, 500) }).take(limit);
  if (flags.json) return printJson(rows);
  if (rows.length === 0) return note('No requests in that time.');
  const columns = rowColumns(await serverNames(client), await keyNames(client));
  print(table(rows, columns, terminalColumns()));
}

const rowColumns = (serverName: NameOf, keyName: NameOf): Column<UsageRow>[] => [
  { head: 'WHEN', cell: (row) => ago(row.created_at) },
  { head: 'MODEL', cell: (row) => row.model, flexible: true },
  { head: 'SERVED BY', cell: (row) => serverOf(row, serverName), flexible: true },
  { head: 'KEY', cell: (row) => (row.key === null ? '–' : keyName(row.key)), flexible: true },
  { head: 'OUTCOME', cell: (row) => row.outcome, style: (row) => (row.status < 400 ? 'green' : 'red') },
  { head: 'IN', cell: (row) => tokens(row.prompt_tokens, row.estimated), align: 'right' },
  { head: 'OUT', cell: (row) => tokens(row.completion_tokens, row.estimated), align: 'right' },
  { head: 'QUEUE', cell: (row) => formatDuration(row.queue_ms), align: 'right', optional: true },
  {
    head: 'FIRST',
    cell: (row) => (row.first_byte_ms === null ? '–' : formatDuration(row.first_byte_ms)),
    align: 'right',
  },
  { head: 'TOTAL', cell: (row) => formatDuration(row.total_ms), align: 'right' },
];

function serverOf({ node, provider }: UsageRow, serverName: NameOf): string {
  const id = node ?? provider;
  return id ? serverName(id) : '–';
}

/** An estimated count is marked: it is no fact. */
function tokens(count: number, estimated: boolean): string {
  return `${estimated ? '~' : ''}${count.toLocaleString('en')}`;
}

async function groupNames(client: Flotilla, by: string): Promise<NameOf> {
  if (by === 'node' || by === 'provider') return serverNames(client);
  return by === 'key' ? keyNames(client) : (group) => group;
}

function groupTable(groups: UsageGroup[], by: string, nameOf: NameOf): string {
  const number = (count: number) => count.toLocaleString('en');
  const columns: Column<UsageGroup>[] = [
    { head: by.toUpperCase(), cell: ({ group }) => (group === '' ? '–' : nameOf(group)), flexible: true },
    { head: 'REQUESTS', cell: ({ requests }) => number(requests), align: 'right' },
    { head: 'FAILED', cell: ({ failed }) => number(failed), align: 'right' },
    { head: 'IN', cell: (group) => number(group.prompt_tokens), align: 'right' },
    { head: 'OUT', cell: (group) => number(group.completion_tokens), align: 'right' },
    { head: 'ESTIMATED', cell: ({ estimated }) => number(estimated), align: 'right' },
  ];
  return table(groups, columns, terminalColumns());
}
