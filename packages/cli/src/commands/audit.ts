import type { Command } from 'commander';
import type { AuditEntry } from '@flotilla/sdk';
import { type ClientFlags, openClient, withClient } from '../client.ts';
import { withExamples } from '../help.ts';
import { moment, positive } from '../parse.ts';
import { ago } from '../terminal/moment.ts';
import { note, print, printJson } from '../terminal/output.ts';
import { type Column, table, terminalColumns } from '../terminal/table.ts';

interface AuditFlags extends ClientFlags {
  key?: string;
  action?: string;
  target?: string;
  since?: string;
  until?: string;
  limit: number;
}

export function addAudit(program: Command): void {
  const audit = program
    .command('audit')
    .description('acts of administration: who did what, when and from where')
    .option('--key <id>', 'only by this key')
    .option('--action <name>', 'only this act, like node.drain or key.create')
    .option('--target <id>', 'only on this key, token, node or job')
    .option('--since <when>', 'like 24h (ago), or a date', moment)
    .option('--until <when>', 'the same', moment)
    .option('--limit <n>', 'how many rows at most', positive, 50)
    .action(showAudit);
  withExamples(
    withClient(audit),
    ['flotilla audit', 'the newest 50 acts'],
    ['flotilla audit --since 7d --action key.create', 'keys made within a week'],
    ['flotilla audit --target node_01J… --json', 'all that was done to a node, with requests and addresses'],
  );
}

async function showAudit(flags: AuditFlags): Promise<void> {
  const client = await openClient(flags);
  const { key, action, target, since, until, limit } = flags;
  const filter = { key, action, target, since, until };
  const rows = await client.audit.list({ ...filter, limit: Math.min(limit, 500) }).take(limit);
  if (flags.json) return printJson(rows);
  if (rows.length === 0) return note('Nothing was done in that time.');
  print(table(rows, COLUMNS, terminalColumns()));
}

/** Without a key: a machine that enrols, which has an address, or the control plane at its start, which has none. */
function whoOf({ key, key_name, address }: AuditEntry): string {
  return key_name ?? key ?? (address === null ? 'the control plane' : 'a token');
}

const COLUMNS: Column<AuditEntry>[] = [
  { head: 'WHEN', cell: (row) => ago(row.at) },
  { head: 'WHO', cell: whoOf, flexible: true },
  { head: 'ACT', cell: (row) => row.action },
  { head: 'TARGET', cell: (row) => row.target ?? '–', whole: true },
  {
    head: 'OUTCOME',
    cell: (row) => row.outcome,
    style: (row) => (row.outcome === 'succeeded' ? 'green' : 'red'),
  },
  { head: 'FROM', cell: (row) => row.address ?? '–', optional: true },
  { head: 'ASKED FOR', cell: (row) => JSON.stringify(row.change), flexible: true },
];
