import { type Command, InvalidArgumentError } from 'commander';
import type { Key } from '@flotilla/sdk';
import { type Budget, budget, budgetText, type None, rate } from '../budget.ts';
import { type ClientFlags, openClient, withClient } from '../client.ts';
import { CommandError, UsageError } from '../failure.ts';
import { withExamples } from '../help.ts';
import { collect, collectLabel, futureMoment, positive } from '../parse.ts';
import { ago } from '../terminal/moment.ts';
import { note, print, printJson } from '../terminal/output.ts';
import { type Column, facts, table, terminalColumns } from '../terminal/table.ts';
import { labelText } from '../terminal/text.ts';
import { limitFacts } from '../terminal/limits.ts';

const SCOPES = ['inference', 'jobs', 'agents', 'nodes:read'] as const;
type Scope = (typeof SCOPES)[number];

interface RightFlags extends ClientFlags {
  scope?: Scope[];
  model?: string[];
  nodeLabel?: Record<string, string>;
  requestsPerMinute?: number;
  concurrency?: number;
  tokensPerMinute?: number | None;
  tokenBudget?: Budget | None;
  expires?: string;
}

export function addKeys(program: Command): void {
  const keys = program.command('keys').description('API keys: who may use what');

  const list = keys.command('list').description('list the keys (the default)').action(listKeys);
  list.option('--limit <n>', 'how many at most', positive, 100);
  withExamples(withClient(list), ['flotilla keys', 'one line a key; the keys themselves are stored nowhere']);

  const create = keys
    .command('create <name>')
    .description('make a key; it is printed once, alone on stdout')
    .option('--admin', 'may do everything (default: only inference)')
    .action(createKey);
  withExamples(
    withClient(withRights(create)),
    ['flotilla keys create ci', 'a key for inference with every model'],
    [
      'flotilla keys create demo --model llama3 --requests-per-minute 60 --expires 7d',
      'one for a week, one model',
    ],
    [
      'flotilla keys create ci --tokens-per-minute 20000 --token-budget 1M/month',
      'one that cannot cost more than that',
    ],
    ['export OPENAI_API_KEY=$(flotilla keys create me)', 'only the key goes to stdout'],
  );

  const show = keys.command('show <id>').description('show one key').action(showKey);
  withExamples(withClient(show), ['flotilla keys show key_01J…', 'its rights, limits and last use']);

  const limits = keys
    .command('limits [id]')
    .description("what is left of a key's limits and its budget: of the key in use, or of any as admin")
    .action(showLimits);
  withExamples(
    withClient(limits),
    ['flotilla keys limits', 'of the key in use'],
    ['flotilla keys limits key_01J…', 'of another one, as admin'],
  );

  const update = keys
    .command('update <id>')
    .description('change rights and limits; what is not given stays')
    .option('--name <name>', 'another name')
    .action(updateKey);
  withExamples(withClient(withRights(update)), [
    'flotilla keys update key_01J… --concurrency 4',
    'four requests of it at once',
  ]);

  const revoke = keys
    .command('revoke <id>')
    .description('revoke a key, everywhere within a second')
    .action(revokeKey);
  withExamples(withClient(revoke), [
    'flotilla keys revoke key_01J…',
    'requests with it are refused from now on',
  ]);
}

function withRights(command: Command): Command {
  return command
    .option('--scope <scope>', `one of ${SCOPES.join(', ')}; repeat for several`, collectScope)
    .option(
      '--model <model>',
      'a model it may use, `name*` for all that begin so; repeat for several',
      collect,
    )
    .option(
      '--node-label <key=value>',
      'only nodes with this label serve it; repeat for several',
      collectLabel,
    )
    .option('--requests-per-minute <n>', 'how many requests it may make a minute', positive)
    .option('--concurrency <n>', 'how many requests it may have at work at once', positive)
    .option('--tokens-per-minute <n>', 'how many tokens a minute, prompts and answers; none lifts it', rate)
    .option(
      '--token-budget <n/period>',
      'how many tokens a day, week, month (calendar, UTC) or in total; none lifts it',
      budget,
    )
    .option('--expires <when>', 'like 30d (from now), or a date', futureMoment);
}

function collectScope(value: string, before: Scope[] | undefined): Scope[] {
  const scope = SCOPES.find((known) => known === value);
  if (!scope) throw new InvalidArgumentError(`There is ${SCOPES.join(', ')}.`);
  return [...(before ?? []), scope];
}

function rightsOf(flags: RightFlags) {
  return {
    ...(flags.scope && { scopes: flags.scope }),
    ...(flags.model && { allowed_models: flags.model }),
    ...(flags.nodeLabel && { node_labels: flags.nodeLabel }),
    ...(flags.requestsPerMinute && { requests_per_minute: flags.requestsPerMinute }),
    ...(flags.concurrency && { concurrency: flags.concurrency }),
    ...(flags.tokensPerMinute !== undefined && { tokens_per_minute: limitOf(flags.tokensPerMinute) }),
    ...(flags.tokenBudget !== undefined && { token_budget: limitOf(flags.tokenBudget) }),
    ...(flags.expires && { expires_at: flags.expires }),
  };
}

function limitOf<T>(given: T | None): T | null {
  return given === 'none' ? null : given;
}

async function listKeys(flags: ClientFlags & { limit: number }): Promise<void> {
  const client = await openClient(flags);
  const keys = await client.keys.list().take(flags.limit);
  if (flags.json) return printJson(keys);
  if (keys.length === 0) return note('No keys yet. Make one: flotilla keys create NAME');
  print(table(keys, COLUMNS, terminalColumns()));
}

const COLUMNS: Column<Key>[] = [
  { head: 'ID', cell: (key) => key.id, whole: true },
  { head: 'NAME', cell: (key) => key.name, flexible: true },
  { head: 'MAY', cell: (key) => key.role ?? key.scopes.join(','), flexible: true },
  { head: 'MODELS', cell: modelsOf, flexible: true },
  { head: 'LAST USED', cell: (key) => ago(key.last_used_at) },
  {
    head: 'STATE',
    cell: stateOf,
    style: (key) => (stateOf(key) === 'valid' ? undefined : 'dim'),
  },
];

function modelsOf(key: Key): string {
  return key.allowed_models.length === 0 ? 'all' : key.allowed_models.join(',');
}

function stateOf(key: Key): string {
  if (key.revoked_at !== null) return 'revoked';
  return key.expires_at !== null && Date.parse(key.expires_at) < Date.now() ? 'expired' : 'valid';
}

async function createKey(name: string, flags: RightFlags & { admin?: boolean }): Promise<void> {
  if (flags.admin && flags.scope) {
    throw new UsageError('--admin may do everything; --scope would change nothing. Give one of them.');
  }
  const client = await openClient(flags);
  const { tokens_per_minute, token_budget, ...rights } = rightsOf(flags);
  const made = await client.keys.create({
    name,
    ...rights,
    // A new key has no limits that could be lifted.
    ...(typeof tokens_per_minute === 'number' && { tokens_per_minute }),
    ...(token_budget && { token_budget }),
    ...(flags.admin && { role: 'admin' }),
  });
  if (flags.json) return printJson(made);
  note(`Key ${made.name} (${made.id}). It is shown this once:`);
  print(made.key);
}

async function showKey(id: string, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  printKey(await client.keys.show(id), flags);
}

async function showLimits(id: string | undefined, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const left = await client.usage.limits({ key: id });
  if (flags.json) return printJson(left);
  print(limitFacts(left));
}

async function updateKey(id: string, flags: RightFlags & { name?: string }): Promise<void> {
  const change = { ...rightsOf(flags), ...(flags.name && { name: flags.name }) };
  if (Object.keys(change).length === 0) {
    throw new UsageError('Nothing to change was given.', 'See what can be: flotilla keys update --help');
  }
  const client = await openClient(flags);
  printKey(await client.keys.update(id, change), flags);
}

async function revokeKey(id: string, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const key = await client.keys.revoke(id);
  if (key.revoked_at === null) throw new CommandError(`The server did not revoke ${id}.`);
  if (flags.json) return printJson(key);
  note(`Key ${key.name} (${key.id}) is revoked.`);
}

function printKey(key: Key, flags: ClientFlags): void {
  if (flags.json) return printJson(key);
  const limits = [
    key.requests_per_minute === null ? '' : `${key.requests_per_minute} requests a minute`,
    key.concurrency === null ? '' : `${key.concurrency} at once`,
    key.tokens_per_minute === null ? '' : `${key.tokens_per_minute.toLocaleString('en')} tokens a minute`,
    key.token_budget === null ? '' : budgetText(key.token_budget),
  ];
  print(
    facts([
      ['id', key.id],
      ['name', key.name],
      ['may', key.role ?? key.scopes.join(', ')],
      ['models', modelsOf(key)],
      ['nodes', labelText(key.node_labels)],
      ['limits', limits.filter((limit) => limit !== '').join(', ')],
      ['state', stateOf(key)],
      ['made', ago(key.created_at)],
      ['expires', key.expires_at],
      ['last used', ago(key.last_used_at)],
    ]),
  );
}
