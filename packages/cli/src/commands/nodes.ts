import type { Command } from 'commander';
import type { Node } from '@flotilla/sdk';
import { type ClientFlags, openClient, withClient } from '../client.ts';
import { UsageError } from '../failure.ts';
import { findNode } from '../find-node.ts';
import { withExamples } from '../help.ts';
import { collect, collectLabel, deadline, duration, positive } from '../parse.ts';
import { formatDuration } from '../terminal/moment.ts';
import { note, print, printJson } from '../terminal/output.ts';
import { nodeTable, nodeText } from '../terminal/node.ts';
import { lastLists } from '../terminal/node-models.ts';

export function addNodes(program: Command): void {
  const nodes = program
    .command('nodes')
    .description('the machines: list, inspect, label, cordon, drain, revoke');

  const list = nodes.command('list').description('list the nodes (the default)').action(listNodes);
  list.option('--limit <n>', 'how many at most', positive, 1000);
  withExamples(
    withClient(list),
    ['flotilla nodes', 'who is there, with how many slots, and why not'],
    ['flotilla nodes --json | jq -r \'.[] | select(.state == "online") | .name\'', 'for a script'],
  );

  const show = nodes
    .command('show <node>')
    .description('show one node, and why it is as it is')
    .action(showNode);
  withExamples(withClient(show), ['flotilla nodes show attic', 'by name, or by id']);

  const models = nodes
    .command('models <node>')
    .description('the last list of models that each of its backends told, also while it is offline')
    .action(nodeModels);
  withExamples(
    withClient(models),
    ['flotilla nodes models attic', 'with the age of each list'],
    ['flotilla models discover attic', 'asks the node now'],
  );

  const update = nodes
    .command('update <node>')
    .description('change its labels, or the models it may serve; what is not given stays')
    .option('--label <key=value>', 'its labels from now on; repeat for several', collectLabel)
    .option('--no-labels', 'take all labels away')
    .option('--model <model>', 'the only models it may serve; repeat for several, * for all', collect)
    .action(updateNode);
  withExamples(
    withClient(update),
    ["flotilla nodes update attic --label room=attic --model 'llama3*'", 'all that begin with llama3'],
    ["flotilla nodes update attic --no-labels --model '*'", 'as it was made'],
  );

  const cordon = nodes.command('cordon <node>').description('give it no new work').action(cordonNode);
  withExamples(withClient(cordon), ['flotilla nodes cordon attic', 'what runs there goes on']);

  const uncordon = nodes
    .command('uncordon <node>')
    .description('give it work again; ends a drain')
    .action(uncordonNode);
  withExamples(withClient(uncordon), ['flotilla nodes uncordon attic', 'it takes work at once']);

  const drain = nodes
    .command('drain <node>')
    .description('cordon, then finish or move what runs by the deadline')
    .option('--deadline <duration>', 'like 30s or 10m (default: 5m)', deadline)
    .action(drainNode);
  withExamples(withClient(drain), [
    'flotilla nodes drain attic --deadline 2m',
    'before its machine is switched off',
  ]);

  const rotate = nodes
    .command('rotate <node>')
    .description('make a new credential; it is printed once, alone on stdout')
    .option('--overlap <duration>', 'how long the old one still works (default: 1d)', duration)
    .action(rotateNode);
  withExamples(withClient(rotate), [
    'flotilla nodes rotate attic | ssh attic flotilla node credential',
    'its daemon takes it up, and its work goes on',
  ]);

  const revoke = nodes
    .command('revoke <node>')
    .description('withdraw its credential at once: its results are refused, its work moves')
    .action(revokeNode);
  withExamples(withClient(revoke), ['flotilla nodes revoke attic', 'for a machine that was lost or stolen']);

  const remove = nodes
    .command('delete <node>')
    .description('forget a revoked or offline node')
    .action(deleteNode);
  withExamples(withClient(remove), ['flotilla nodes delete attic', 'frees its name']);
  withExamples(
    nodes,
    ['flotilla nodes', 'who is there, with which models, and why not'],
    ['flotilla nodes show attic', 'all of one; what to do with it: docs/guides/nodes.md'],
  );
}

async function listNodes(flags: ClientFlags & { limit: number }): Promise<void> {
  const client = await openClient(flags);
  const nodes = await client.nodes.list().take(flags.limit);
  if (flags.json) return printJson(nodes);
  if (nodes.length === 0) return note('No nodes yet. Make a token for one: flotilla tokens create');
  print(nodeTable(nodes));
}

async function showNode(node: string, flags: ClientFlags): Promise<void> {
  const found = await findNode(await openClient(flags), node);
  if (flags.json) return printJson(found);
  print(nodeText(found));
}

async function nodeModels(node: string, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const found = await findNode(client, node);
  const lists = await client.nodes.models(found.id);
  if (flags.json) return printJson(lists);
  if (lists.backends.length > 0) print(lastLists(lists));
  const known = lists.backends.some(({ models }) => models !== null);
  if (lists.backends.length === 0) note(`No backend of ${found.name} is known.`);
  if (!known) note(`It has told no list yet. Ask for one: flotilla models discover ${found.name}`);
  else if (found.state !== 'online') note(`${found.name} is ${found.state}: these lists are its last ones.`);
}

interface UpdateFlags extends ClientFlags {
  label?: Record<string, string>;
  /** False with `--no-labels`. */
  labels: boolean;
  model?: string[];
}

async function updateNode(node: string, flags: UpdateFlags): Promise<void> {
  const labels = flags.label ?? (flags.labels ? undefined : {});
  const allowed_models = flags.model?.includes('*') === true ? [] : flags.model;
  if (labels === undefined && allowed_models === undefined) {
    throw new UsageError('Nothing to change was given.', 'See what can be: flotilla nodes update --help');
  }
  const client = await openClient(flags);
  const { id } = await findNode(client, node);
  const updated = await client.nodes.update(id, {
    ...(labels && { labels }),
    ...(allowed_models && { allowed_models }),
  });
  if (flags.json) return printJson(updated);
  print(nodeText(updated));
}

async function cordonNode(node: string, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const found = await findNode(client, node);
  tell(await client.nodes.cordon(found.id), flags, 'is cordoned: it gets no new work.');
}

async function uncordonNode(node: string, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const found = await findNode(client, node);
  tell(await client.nodes.uncordon(found.id), flags, 'takes work again.');
}

async function drainNode(node: string, flags: ClientFlags & { deadline?: number }): Promise<void> {
  const client = await openClient(flags);
  const found = await findNode(client, node);
  const drained = await client.nodes.drain(
    found.id,
    flags.deadline === undefined ? {} : { deadline_ms: flags.deadline },
  );
  const { drain } = drained;
  const until = drain ? ` ${drain.in_flight} still at work; deadline ${drain.deadline_at}.` : '';
  tell(drained, flags, `drains.${until} See how far it is: flotilla nodes show ${drained.name}`);
}

async function rotateNode(node: string, flags: ClientFlags & { overlap?: number }): Promise<void> {
  const client = await openClient(flags);
  const found = await findNode(client, node);
  const rotated = await client.nodes.rotate(
    found.id,
    flags.overlap === undefined ? {} : { overlap_ms: flags.overlap },
  );
  if (flags.json) return printJson(rotated);
  const left = formatDuration(Date.parse(rotated.old_expires_at) - Date.now());
  note(`The new credential of ${found.name}, shown this once. The old one works for ${left} more.`);
  note('Hand it over on its machine, through stdin: flotilla node credential');
  print(rotated.credential);
}

async function revokeNode(node: string, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const found = await findNode(client, node);
  tell(await client.nodes.revoke(found.id), flags, 'is revoked; it cannot come back with its credential.');
}

async function deleteNode(node: string, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const found = await findNode(client, node);
  await client.nodes.delete(found.id);
  if (flags.json) return printJson({ id: found.id, deleted: true });
  note(`Node ${found.name} is forgotten.`);
}

function tell(node: Node, flags: ClientFlags, what: string): void {
  if (flags.json) return printJson(node);
  note(`Node ${node.name} ${what}`);
}
