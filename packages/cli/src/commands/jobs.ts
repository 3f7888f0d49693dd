import { type Command, Option } from 'commander';
import type { Explanation, Job, Query } from '@flotilla/sdk';
import { type ClientFlags, openClient, withClient } from '../client.ts';
import { withExamples } from '../help.ts';
import { addSubmit } from './jobs-submit.ts';
import { addWatch } from './jobs-watch.ts';
import { type NameOf, serverNames } from '../names.ts';
import { positive } from '../parse.ts';
import { ago, formatDuration } from '../terminal/moment.ts';
import { note, print, printJson } from '../terminal/output.ts';
import { type Column, facts, table, terminalColumns } from '../terminal/table.ts';

const STATES = ['queued', 'leased', 'running', 'succeeded', 'failed', 'timed_out', 'cancelled'] as const;
/** A job that has ended is placed nowhere: nodes have no verdict on it. */
const OPEN: readonly string[] = STATES.slice(0, 3);

export function addJobs(program: Command): void {
  const jobs = program.command('jobs').description('units of work: every request is one');

  const list = jobs
    .command('list')
    .description('list jobs, newest first (the default)')
    .addOption(new Option('--state <state>', 'only those in this state').choices(STATES))
    .option('--model <model>', 'only those for this model')
    .option('--limit <n>', 'how many at most', positive, 50)
    .action(listJobs);
  withExamples(
    withClient(list),
    ['flotilla jobs', 'the newest 50'],
    ['flotilla jobs --state queued', 'what waits'],
  );

  const show = jobs.command('show <id>').description('show one job with its attempts').action(showJob);
  withExamples(withClient(show), ['flotilla jobs show job_01J…', 'which nodes tried, and what came of it']);

  const explain = jobs
    .command('explain <id>')
    .description('every node with its verdict on this job')
    .action(explainJob);
  withExamples(withClient(explain), [
    'flotilla jobs explain job_01J…',
    'why an open job waits, or where it is',
  ]);

  const cancel = jobs.command('cancel <id>').description('cancel an open job').action(cancelJob);
  withExamples(withClient(cancel), ['flotilla jobs cancel job_01J…', 'the node is told at once']);

  withExamples(
    jobs,
    ['flotilla jobs --state queued', 'what waits, and then why: flotilla jobs explain job_01J…'],
    ['flotilla jobs submit night.jsonl', 'work that nobody waits for: docs/guides/jobs.md'],
  );
  addSubmit(jobs);
  addWatch(jobs);
}

const columnsOf = (serverName: NameOf): Column<Job>[] => [
  { head: 'ID', cell: (job) => job.id, whole: true },
  { head: 'STATE', cell: (job) => job.state, whole: true, style: styleOf },
  { head: 'MODEL', cell: (job) => job.model ?? '–', flexible: true },
  { head: 'SERVED BY', cell: (job) => serverOf(job.attempts.at(-1), serverName), flexible: true },
  { head: 'TRIES', cell: (job) => String(job.attempts.length), align: 'right', optional: true },
  { head: 'AGE', cell: (job) => ago(job.created_at) },
  { head: 'TOOK', cell: tookOf, optional: true },
  { head: 'ERROR', cell: (job) => job.error?.code ?? '', flexible: true },
];

function styleOf({ state }: Job): 'green' | 'yellow' | 'red' | undefined {
  if (state === 'succeeded') return 'green';
  if (state === 'failed' || state === 'timed_out') return 'red';
  return state === 'cancelled' ? undefined : 'yellow';
}

function tookOf(job: Job): string {
  if (job.finished_at === null) return '';
  return formatDuration(Math.max(0, Date.parse(job.finished_at) - Date.parse(job.created_at)));
}

async function listJobs(flags: ClientFlags & Query<'listJobs'> & { limit: number }): Promise<void> {
  const client = await openClient(flags);
  const { state, model, limit } = flags;
  const jobs = await client.jobs.list({ state, model, limit: Math.min(limit, 500) }).take(limit);
  if (flags.json) return printJson(jobs);
  if (jobs.length === 0) return note('No such jobs.');
  print(table(jobs, columnsOf(await serverNames(client)), terminalColumns()));
}

async function showJob(id: string, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const job = await client.jobs.show(id);
  if (flags.json) return printJson(job);
  print(jobText(job, await serverNames(client)));
}

function serverOf(attempt: Job['attempts'][number] | undefined, serverName: NameOf): string {
  const id = attempt?.node ?? attempt?.provider;
  return id ? serverName(id) : '–';
}

function jobText(job: Job, serverName: NameOf): string {
  const head = facts([
    ['id', job.id],
    ['kind', `${job.kind}, ${job.attached ? 'attached' : 'detached'}`],
    ['state', job.position === null ? job.state : `${job.state}, ${job.position} before it`],
    ['model', job.model],
    ['operation', job.operation],
    ['key', job.key],
    ['request', job.request_id],
    ['error', job.error && `${job.error.code}: ${job.error.message}`],
    ['made', `${job.created_at} (${ago(job.created_at)})`],
    ['took', tookOf(job)],
  ]);
  if (job.attempts.length === 0) {
    if (!OPEN.includes(job.state)) return `${head}\n\nNo attempt of it is on record.`;
    return `${head}\n\nNo attempt yet. See why: flotilla jobs explain ${job.id}`;
  }
  const columns: Column<Job['attempts'][number]>[] = [
    { head: 'TRY', cell: ({ attempt }) => String(attempt), align: 'right' },
    { head: 'ASKED', cell: (attempt) => serverOf(attempt, serverName), flexible: true },
    { head: 'BACKEND', cell: ({ backend }) => backend ?? '–', flexible: true },
    { head: 'OUTCOME', cell: ({ outcome }) => outcome },
    { head: 'CODE', cell: ({ code }) => code ?? '' },
    { head: 'MESSAGE', cell: ({ message }) => message ?? '', flexible: true },
  ];
  return `${head}\n\n${table(job.attempts, columns, terminalColumns())}`;
}

async function explainJob(id: string, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const explanation = await client.jobs.explain(id);
  if (flags.json) return printJson(explanation);
  const columns: Column<Explanation['nodes'][number]>[] = [
    { head: 'NODE', cell: ({ name }) => name, flexible: true },
    { head: 'VERDICT', cell: ({ verdict }) => verdict },
    { head: 'REASONS', cell: ({ reasons }) => reasons.join('; '), flexible: true },
  ];
  print(explanation.summary);
  if (OPEN.includes(explanation.state)) {
    const { nodes } = explanation;
    print(nodes.length === 0 ? '\nThere are no nodes.' : `\n${table(nodes, columns, terminalColumns())}`);
  } else note(`Which nodes tried, and what came of it: flotilla jobs show ${explanation.id}`);
}

async function cancelJob(id: string, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const job = await client.jobs.cancel(id);
  if (flags.json) return printJson(job);
  note(`Job ${job.id} is ${job.state}.`);
}
