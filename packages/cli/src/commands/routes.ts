import { type Command, InvalidArgumentError, Option } from 'commander';
import type { Body, Flotilla, Route, RouteExplanation } from '@flotilla/sdk';
import { type ClientFlags, openClient, withClient } from '../client.ts';
import { UsageError } from '../failure.ts';
import { findNamed } from '../find-named.ts';
import { withExamples } from '../help.ts';
import { collect, collectLabel } from '../parse.ts';
import { ago } from '../terminal/moment.ts';
import { note, print, printJson } from '../terminal/output.ts';
import { type Column, facts, table, terminalColumns } from '../terminal/table.ts';
import { labelText } from '../terminal/text.ts';

type Target = Body<'createRoute'>['targets'][number];

interface RouteFlags extends ClientFlags {
  target?: Target[];
  alias?: string[];
}

export function addRoutes(program: Command): void {
  const routes = program
    .command('routes')
    .description('public models, and where their requests go: providers and nodes, in order');

  const list = routes.command('list').description('list the routes (the default)').action(listRoutes);
  withExamples(withClient(list), ['flotilla routes', 'each model with its targets, the preferred one first']);

  const show = routes.command('show <route>').description('show one route').action(showRoute);
  withExamples(withClient(show), ['flotilla routes show gpt', 'by name, or by id']);

  const explain = routes
    .command('explain <model>')
    .description('where a request would go now, and why; nothing is asked of anybody')
    .addOption(
      new Option('--operation <operation>', 'what would be asked (default: chat)').choices([
        'chat',
        'completions',
        'embeddings',
      ]),
    )
    .option('--key <id>', 'asked with this key, its rights and labels')
    .action(explainModel);
  withExamples(
    withClient(explain),
    ['flotilla routes explain gpt', 'the target that would serve, and what keeps the others from it'],
    ['flotilla routes explain gpt --key key_01J…', 'would this key be served?'],
  );

  const create = routes
    .command('create <model>')
    .description('make a public model; it outranks nodes that have a model of its name')
    .option('--disabled', 'answer 404 for now')
    .action(createRoute);
  withExamples(
    withClient(withTargets(create)),
    [
      'flotilla routes create fast --target nodes=llama3 --target openai=gpt-5-mini --alias default',
      'own machines first; the provider when they are busy, away or fail',
    ],
    ['flotilla routes create big --target nodes=qwen3@gpu=h100,site=lab', 'only nodes with these labels'],
  );

  const update = routes
    .command('update <route>')
    .description('change it; targets and aliases that are given replace all of them')
    .option('--name <model>', 'another name')
    .option('--no-aliases', 'take all aliases away')
    .action(updateRoute);
  withExamples(withClient(withTargets(update)), [
    'flotilla routes update fast --target openai=gpt-5-mini',
    'requests that wait follow it',
  ]);

  const enable = routes
    .command('enable <route>')
    .description('serve it (again)')
    .action((name: string, flags: ClientFlags) => setEnabled(name, true, flags));
  withExamples(withClient(enable), ['flotilla routes enable fast', 'at once']);

  const disable = routes
    .command('disable <route>')
    .description('answer 404, also where nodes have a model of its name')
    .action((name: string, flags: ClientFlags) => setEnabled(name, false, flags));
  withExamples(withClient(disable), ['flotilla routes disable fast', 'what runs goes on']);

  const remove = routes
    .command('delete <route>')
    .description('forget a route; nodes with a model of its name serve it again')
    .action(deleteRoute);
  withExamples(withClient(remove), ['flotilla routes delete fast', 'its aliases go with it']);
}

function withTargets(command: Command): Command {
  return command
    .option(
      '--target <target>',
      'PROVIDER=MODEL, or nodes=MODEL[@label=value,…]; repeat in the order in which they are tried',
      collectTarget,
    )
    .option('--alias <name>', 'another name that clients may ask for; repeat for several', collect);
}

/** A provider that is called `nodes` is named by its id. */
function collectTarget(value: string, before: Target[] | undefined): Target[] {
  const [, where, what] = /^([^=@]+)=(.+)$/s.exec(value) ?? [];
  if (where === undefined || what === undefined) {
    throw new InvalidArgumentError('Write it as PROVIDER=MODEL or nodes=MODEL[@label=value,…].');
  }
  // A model's own name may have an @; labels come after the last one and have a =.
  const [, model = what, labels] = /^(.+)@([^@=]+=.*)$/s.exec(what) ?? [];
  const wanted = labels
    ?.split(',')
    .reduce<Record<string, string> | undefined>((all, label) => collectLabel(label, all), undefined);
  const target: Target = {
    model,
    ...(where !== 'nodes' && { provider: where }),
    ...(wanted && { labels: wanted }),
  };
  return [...(before ?? []), target];
}

const COLUMNS: Column<Route>[] = [
  { head: 'MODEL', cell: (route) => route.name, flexible: true },
  { head: 'TARGETS', cell: (route) => route.targets.map(targetText).join(' → '), flexible: true },
  { head: 'ALIASES', cell: (route) => route.aliases.join(', '), flexible: true },
  {
    head: 'STATE',
    cell: stateOf,
    style: (route) => (route.enabled ? 'green' : 'dim'),
  },
];

function stateOf(route: Route): string {
  return route.enabled ? 'enabled' : 'disabled';
}

/** As it is written for --target. */
function targetText({ provider, provider_name, model, labels }: Route['targets'][number]): string {
  const wanted = Object.keys(labels).length === 0 ? '' : `@${labelText(labels).replaceAll(', ', ',')}`;
  return `${provider === null ? 'nodes' : (provider_name ?? provider)}=${model}${wanted}`;
}

async function listRoutes(flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const routes = await client.routes.list({ limit: 500 }).take(5000);
  if (flags.json) return printJson(routes);
  if (routes.length === 0) {
    return note(
      'No routes: clients ask for the models of the nodes. Make one: flotilla routes create --help',
    );
  }
  print(table(routes, COLUMNS, terminalColumns()));
}

async function showRoute(name: string, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  printRoute(await find(client, name), flags);
}

async function createRoute(name: string, flags: RouteFlags & { disabled?: boolean }): Promise<void> {
  if (flags.target === undefined) {
    throw new UsageError('A route needs a target.', 'For example: --target nodes=llama3');
  }
  const client = await openClient(flags);
  const made = await client.routes.create({
    name,
    targets: flags.target,
    ...(flags.alias && { aliases: flags.alias }),
    ...(flags.disabled && { enabled: false }),
  });
  if (flags.json) return printJson(made);
  note(
    `Route ${made.name} (${made.id}) is made. Where a request would go: flotilla routes explain ${made.name}`,
  );
}

async function updateRoute(
  name: string,
  flags: RouteFlags & { name?: string; aliases?: boolean },
): Promise<void> {
  const change = {
    ...(flags.name && { name: flags.name }),
    ...(flags.target && { targets: flags.target }),
    ...(flags.aliases === false && { aliases: [] }),
    ...(flags.alias && { aliases: flags.alias }),
  };
  if (Object.keys(change).length === 0) {
    throw new UsageError('Nothing to change was given.', 'See what can be: flotilla routes update --help');
  }
  const client = await openClient(flags);
  const { id } = await find(client, name);
  printRoute(await client.routes.update(id, change), flags);
}

async function setEnabled(name: string, enabled: boolean, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const { id } = await find(client, name);
  const route = await client.routes.update(id, { enabled });
  if (flags.json) return printJson(route);
  note(`Route ${route.name} ${enabled ? 'is served' : 'answers 404'}.`);
}

async function deleteRoute(name: string, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const found = await find(client, name);
  await client.routes.delete(found.id);
  if (flags.json) return printJson({ id: found.id, deleted: true });
  note(`Route ${found.name} is forgotten.`);
}

async function explainModel(
  model: string,
  flags: ClientFlags & { operation?: 'chat' | 'completions' | 'embeddings'; key?: string },
): Promise<void> {
  const client = await openClient(flags);
  const { operation, key } = flags;
  const explained = await client.routes.explain({
    model,
    ...(operation && { operation }),
    ...(key && { key }),
  });
  if (flags.json) return printJson(explained);
  note(explained.summary);
  const rows = rowsOf(explained);
  if (rows.length > 0) print(table(rows, EXPLAIN_COLUMNS, terminalColumns()));
}

interface PlaceRow {
  order: string;
  target: string;
  place: string;
  verdict: string;
  fine: boolean;
}

const EXPLAIN_COLUMNS: Column<PlaceRow>[] = [
  { head: '#', cell: (row) => row.order, align: 'right' },
  { head: 'TARGET', cell: (row) => row.target, flexible: true },
  { head: 'PLACE', cell: (row) => row.place, flexible: true },
  { head: 'VERDICT', cell: (row) => row.verdict, style: (row) => (row.fine ? 'green' : 'yellow') },
];

function rowsOf({ targets }: RouteExplanation): PlaceRow[] {
  return targets.flatMap(({ provider, model, places, chosen }, index) => {
    const target = `${provider ?? 'nodes'}=${model}`;
    const order = `${chosen ? '→ ' : ''}${index + 1}`;
    if (places.length === 0) {
      return [{ order, target, place: '–', verdict: 'nobody there has the model', fine: false }];
    }
    return places.map(({ name, reason, verdict }, at) => ({
      order: at === 0 ? order : '',
      target: at === 0 ? target : '',
      place: name,
      verdict: reason ?? verdict,
      fine: reason === null,
    }));
  });
}

function find(client: Flotilla, name: string): Promise<Route> {
  return findNamed(client.routes.list({ limit: 500 }), name, 'route');
}

function printRoute(route: Route, flags: ClientFlags): void {
  if (flags.json) return printJson(route);
  print(
    facts([
      ['id', route.id],
      ['model', route.name],
      ['aliases', route.aliases.join(', ')],
      ['state', stateOf(route)],
      ...route.targets.map((target, index) => [`target ${index + 1}`, targetText(target)] as const),
      ['made', ago(route.created_at)],
    ]),
  );
}
