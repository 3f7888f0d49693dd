import { text } from 'node:stream/consumers';
import { type Command, InvalidArgumentError, Option } from 'commander';
import type { Flotilla, Provider } from '@flotilla/sdk';
import { type ClientFlags, openClient, withClient } from '../client.ts';
import { UsageError } from '../failure.ts';
import { findNamed } from '../find-named.ts';
import { withExamples } from '../help.ts';
import { collectLabel, duration, positive } from '../parse.ts';
import { ago, formatDuration } from '../terminal/moment.ts';
import { note, print, printJson } from '../terminal/output.ts';
import { type Column, facts, table, terminalColumns } from '../terminal/table.ts';
import { labelText } from '../terminal/text.ts';

interface ProviderFlags extends ClientFlags {
  keyStdin?: boolean;
  keyEnv?: string;
  keyHeader?: string;
  concurrency?: number;
  label?: Record<string, string>;
  probe?: 'models' | 'none';
  connectTimeout?: number;
  firstByteTimeout?: number;
  idleTimeout?: number;
}

export function addProviders(program: Command): void {
  const providers = program
    .command('providers')
    .description('upstream APIs that the control plane calls itself; routes send requests to them');

  const list = providers
    .command('list')
    .description('list the providers (the default)')
    .action(listProviders);
  withExamples(withClient(list), ['flotilla providers', 'which there are, and how they are']);

  const show = providers
    .command('show <provider>')
    .description('show one provider, and why it is as it is')
    .action(showProvider);
  withExamples(withClient(show), ['flotilla providers show openai', 'by name, or by id']);

  const create = providers
    .command('create <name> <url>')
    .description('add an OpenAI-compatible API; its key is sealed and never shown again')
    .option('--disabled', 'give it no work yet')
    .action(createProvider);
  withExamples(
    withClient(withHow(create)),
    [
      'flotilla providers create openai https://api.openai.com/v1 --key-env OPENAI_API_KEY',
      'the key is read from a variable, so it is in no history and no list of processes',
    ],
    [
      'pass api/groq | flotilla providers create groq https://api.groq.com/openai/v1 --key-stdin --concurrency 8',
      'the same from a password store; eight requests of it at once',
    ],
    ['flotilla routes create gpt --target openai=gpt-5-mini', 'what makes it reachable: a route'],
  );

  const update = providers
    .command('update <provider>')
    .description('change it, its key too, without a restart; what is not given stays')
    .option('--name <name>', 'another name')
    .option('--base-url <url>', 'where its API begins')
    .option('--no-key', 'it asks for no key any more')
    .action(updateProvider);
  withExamples(withClient(withHow(update)), [
    'flotilla providers update openai --key-env NEW_KEY',
    'requests under way go on with the old one',
  ]);

  const enable = providers
    .command('enable <provider>')
    .description('give it work (again)')
    .action((name: string, flags: ClientFlags) => setEnabled(name, true, flags));
  withExamples(withClient(enable), ['flotilla providers enable openai', 'at once']);

  const disable = providers
    .command('disable <provider>')
    .description('give it no new work; what it is answering goes on')
    .action((name: string, flags: ClientFlags) => setEnabled(name, false, flags));
  withExamples(withClient(disable), ['flotilla providers disable openai', 'the next target serves']);

  const probe = providers.command('probe <provider>').description('ask it now how it is').action(probeNow);
  withExamples(withClient(probe), ['flotilla providers probe openai', 'does it answer, and take our key?']);

  const remove = providers
    .command('delete <provider>')
    .description('forget a provider that no route names')
    .action(deleteProvider);
  withExamples(withClient(remove), ['flotilla providers delete openai', 'its sealed key goes with it']);
}

function withHow(command: Command): Command {
  return command
    .option('--key-stdin', 'read its API key from stdin')
    .option('--key-env <variable>', 'read its API key from this variable')
    .option('--key-header <header>', 'the header that carries it (default: authorization, as a bearer token)')
    .option('--concurrency <n>', 'requests of it at once (default: 64)', positive)
    .option('--label <key=value>', 'for keys that ask for labels; repeat for several', collectLabel)
    .addOption(
      new Option('--probe <how>', 'how its health is found (default: models, its list of models)').choices([
        'models',
        'none',
      ]),
    )
    .option('--connect-timeout <duration>', 'like 5s: how long a connection may take', wait)
    .option('--first-byte-timeout <duration>', 'how long the first byte may take', wait)
    .option('--idle-timeout <duration>', 'how long it may be silent in an answer', wait);
}

const LONGEST_WAIT_MS = 3_600_000;

function wait(value: string): number {
  const wait_ms = duration(value);
  if (wait_ms < 1 || wait_ms > LONGEST_WAIT_MS) throw new InvalidArgumentError('Between 1ms and 1h.');
  return wait_ms;
}

/** What was given; what was not stays out. */
async function howOf(flags: ProviderFlags) {
  const api_key = await keyOf(flags);
  return {
    ...(api_key !== undefined && { api_key }),
    ...(flags.keyHeader && { key_header: flags.keyHeader.toLowerCase() }),
    ...(flags.concurrency && { concurrency: flags.concurrency }),
    ...(flags.label && { labels: flags.label }),
    ...(flags.probe && { probe: flags.probe }),
    ...(flags.connectTimeout && { connect_timeout_ms: flags.connectTimeout }),
    ...(flags.firstByteTimeout && { first_byte_timeout_ms: flags.firstByteTimeout }),
    ...(flags.idleTimeout && { idle_timeout_ms: flags.idleTimeout }),
  };
}

/** Never an argument: those stay in the shell's history and in the list of processes. */
async function keyOf({ keyStdin, keyEnv }: ProviderFlags): Promise<string | undefined> {
  if (keyStdin && keyEnv !== undefined) throw new UsageError('Give one of --key-stdin and --key-env.');
  if (keyEnv !== undefined) {
    const key = process.env[keyEnv]?.trim();
    if (!key) throw new UsageError(`The variable ${keyEnv} is not set, or empty.`);
    return key;
  }
  if (!keyStdin) return undefined;
  if (process.stdin.isTTY) note('Paste the key, then Enter and Ctrl-D.');
  const key = (await text(process.stdin)).trim();
  if (key === '') throw new UsageError('Nothing came on stdin.');
  return key;
}

const COLUMNS: Column<Provider>[] = [
  { head: 'NAME', cell: (provider) => provider.name, flexible: true },
  { head: 'HEALTH', cell: healthOf, style: (provider) => STYLES[healthOf(provider)] },
  {
    head: 'BUSY',
    cell: (provider) => `${provider.in_flight}/${provider.concurrency}`,
    align: 'right',
  },
  { head: 'KEY', cell: (provider) => (provider.has_key ? 'sealed' : '–') },
  { head: 'URL', cell: (provider) => provider.base_url, flexible: true },
  { head: 'WHY', cell: (provider) => provider.reason ?? '', flexible: true },
];
const STYLES: Record<string, 'green' | 'yellow' | 'red' | 'dim'> = {
  healthy: 'green',
  degraded: 'yellow',
  down: 'red',
  disabled: 'dim',
};

function healthOf(provider: Provider): string {
  return provider.enabled ? provider.health : 'disabled';
}

async function listProviders(flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const providers = await client.providers.list({ limit: 500 }).take(1000);
  if (flags.json) return printJson(providers);
  if (providers.length === 0) {
    return note('No providers. Add one: flotilla providers create NAME URL --key-env VARIABLE');
  }
  print(table(providers, COLUMNS, terminalColumns()));
}

async function showProvider(name: string, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  printProvider(await find(client, name), flags);
}

async function createProvider(
  name: string,
  url: string,
  flags: ProviderFlags & { disabled?: boolean },
): Promise<void> {
  const how = await howOf(flags);
  const client = await openClient(flags);
  const made = await client.providers.create({
    name,
    base_url: url,
    ...how,
    ...(flags.disabled && { enabled: false }),
  });
  if (flags.json) return printJson(made);
  note(`Provider ${made.name} (${made.id}) is added. Routes make it reachable:`);
  note(`  flotilla routes create MODEL --target ${made.name}=MODEL`);
}

async function updateProvider(
  name: string,
  flags: ProviderFlags & { name?: string; baseUrl?: string; key?: boolean },
): Promise<void> {
  const how = await howOf(flags);
  const change = {
    ...how,
    ...(flags.key === false && { api_key: null }),
    ...(flags.name && { name: flags.name }),
    ...(flags.baseUrl && { base_url: flags.baseUrl }),
  };
  if (Object.keys(change).length === 0) {
    throw new UsageError('Nothing to change was given.', 'See what can be: flotilla providers update --help');
  }
  const client = await openClient(flags);
  const { id } = await find(client, name);
  printProvider(await client.providers.update(id, change), flags);
}

async function setEnabled(name: string, enabled: boolean, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const { id } = await find(client, name);
  const provider = await client.providers.update(id, { enabled });
  if (flags.json) return printJson(provider);
  note(`Provider ${provider.name} ${enabled ? 'gets work' : 'gets no new work'}.`);
}

async function probeNow(name: string, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const { id } = await find(client, name);
  printProvider(await client.providers.probe(id), flags);
}

async function deleteProvider(name: string, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const found = await find(client, name);
  await client.providers.delete(found.id);
  if (flags.json) return printJson({ id: found.id, deleted: true });
  note(`Provider ${found.name} is forgotten, its key too.`);
}

function find(client: Flotilla, name: string): Promise<Provider> {
  return findNamed(client.providers.list({ limit: 500 }), name, 'provider');
}

function printProvider(provider: Provider, flags: ClientFlags): void {
  if (flags.json) return printJson(provider);
  const time = (ms: number | null) => (ms === null ? null : formatDuration(ms));
  print(
    facts([
      ['id', provider.id],
      ['name', provider.name],
      ['url', provider.base_url],
      ['key', provider.has_key ? `sealed, sent in ${provider.key_header}` : 'none'],
      ['health', healthOf(provider)],
      ['why', provider.reason],
      ['alarm', provider.alarms.join('; ')],
      ['busy', `${provider.in_flight} of ${provider.concurrency}`],
      ['labels', labelText(provider.labels)],
      ['probe', provider.probe],
      ['probed', provider.probed_at === null ? null : ago(provider.probed_at)],
      ['models', provider.models?.join(', ')],
      ['connect timeout', time(provider.connect_timeout_ms)],
      ['first byte timeout', time(provider.first_byte_timeout_ms)],
      ['idle timeout', time(provider.idle_timeout_ms)],
      ['made', ago(provider.created_at)],
    ]),
  );
}
