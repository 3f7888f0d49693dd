import type { Command } from 'commander';
import type { EnrolmentToken } from '@flotilla/sdk';
import { type ClientFlags, controlUrl, isLoopback, openClient, withClient } from '../client.ts';
import { withExamples } from '../help.ts';
import { collect, collectLabel, duration, positive } from '../parse.ts';
import { ago } from '../terminal/moment.ts';
import { note, print, printJson } from '../terminal/output.ts';
import { type Column, table, terminalColumns } from '../terminal/table.ts';
import { labelText } from '../terminal/text.ts';
import { lanAddress } from '../up/advice.ts';

export function addTokens(program: Command): void {
  const tokens = program.command('tokens').description('enrolment tokens: how machines join');

  const list = tokens
    .command('list')
    .description('list the tokens that still work (the default)')
    .action(listTokens);
  withExamples(withClient(list), [
    'flotilla tokens',
    'one line a token; the tokens themselves are stored nowhere',
  ]);

  const create = tokens
    .command('create')
    .description('make a token with which a machine can join; it is printed once, alone on stdout')
    .option('--ttl <duration>', 'how long it works, like 10m or 7d (default: 1h)', duration)
    .option('--uses <n>', 'how many machines can join with it (default: 1)', positive)
    .option('--label <key=value>', 'put on every node that joins with it; repeat for several', collectLabel)
    .option('--model <model>', 'the only models such a node may serve; repeat for several', collect)
    .action(createToken);
  withExamples(
    withClient(create),
    ['flotilla tokens create', 'for one machine, within the next hour'],
    ['flotilla tokens create --uses 20 --ttl 1d --label site=lab', 'for a room of them'],
    ['flotilla join URL --token fle_…', 'how the machine then joins'],
  );

  const remove = tokens.command('delete <id>').description('withdraw a token').action(deleteToken);
  withExamples(withClient(remove), ['flotilla tokens delete enr_01J…', 'nodes that joined with it stay']);
}

const COLUMNS: Column<EnrolmentToken>[] = [
  { head: 'ID', cell: (token) => token.id, whole: true },
  { head: 'USES', cell: (token) => `${token.uses}/${token.max_uses}`, align: 'right' },
  { head: 'LABELS', cell: (token) => labelText(token.labels), flexible: true },
  { head: 'MODELS', cell: (token) => token.allowed_models.join(',') || 'all', flexible: true },
  { head: 'EXPIRES', cell: (token) => ago(token.expires_at) },
];

async function listTokens(flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const tokens = await client.tokens.list().take(1000);
  if (flags.json) return printJson(tokens);
  if (tokens.length === 0)
    return note('No tokens. Make one for a machine that is to join: flotilla tokens create');
  print(table(tokens, COLUMNS, terminalColumns()));
}

interface CreateFlags extends ClientFlags {
  ttl?: number;
  uses?: number;
  label?: Record<string, string>;
  model?: string[];
}

async function createToken(flags: CreateFlags): Promise<void> {
  const client = await openClient(flags);
  const made = await client.tokens.create({
    ...(flags.ttl && { ttl_ms: flags.ttl }),
    ...(flags.uses && { max_uses: flags.uses }),
    ...(flags.label && { labels: flags.label }),
    ...(flags.model && { allowed_models: flags.model }),
  });
  if (flags.json) return printJson(made);
  const uses = made.max_uses === 1 ? 'once' : `${made.max_uses} times`;
  // The way to it from here need not be the way from there; an older control plane does not tell.
  const url = made.public_url ?? (await fromOutside(controlUrl(flags)));
  const insecure = url.startsWith('http://') && !isLoopback(url) ? ' --insecure' : '';
  note(`It works ${uses}, until ${made.expires_at}, and is shown this once. On the machine that is to join:`);
  note(`  flotilla join ${url} --token ${made.token}${insecure}`);
  if (insecure !== '') note('(--insecure: the way there is plain http. Do that in a private network only.)');
  if (isLoopback(url))
    note('(with the address by which that machine reaches this one, in place of 127.0.0.1)');
  // In a terminal the line above has it already; a program wants it alone.
  if (!process.stdout.isTTY) print(made.token);
}

const LOOK_WITHIN_MS = 2000;

/** The address by which other machines of this network reach what listens here, if it does not listen on loopback alone. */
async function fromOutside(url: string): Promise<string> {
  const address = lanAddress();
  if (!isLoopback(url) || address === undefined) return url;
  const outside = new URL(url);
  outside.hostname = address;
  const look = { signal: AbortSignal.timeout(LOOK_WITHIN_MS) };
  const found = await fetch(new URL('/healthz', outside), look).catch(() => undefined);
  await found?.body?.cancel();
  return found?.ok === true ? outside.origin : url;
}

async function deleteToken(id: string, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  await client.tokens.delete(id);
  if (flags.json) return printJson({ id, deleted: true });
  note(`Token ${id} is withdrawn.`);
}
