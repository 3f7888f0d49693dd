import type { Command } from 'commander';
import type { Job } from '@flotilla/sdk';
import { type ClientFlags, openClient, withClient } from '../client.ts';
import { CommandError, EXIT } from '../failure.ts';
import { withExamples } from '../help.ts';
import { wordsOf } from '../jobs/job-text.ts';
import { type NameOf, serverNames } from '../names.ts';
import { formatDuration } from '../terminal/moment.ts';
import { note, print } from '../terminal/output.ts';

/** What is done with work that nobody waits for, once it is submitted. */
export function addWatch(jobs: Command): void {
  const watch = jobs
    .command('watch <id>')
    .description('show what becomes of a job until it has ended; the exit code is 0 where it succeeded')
    .action(watchJob);
  withExamples(
    withClient(watch),
    ['flotilla jobs watch job_01J…', 'a line for each step; a connection that breaks is made anew'],
    ['flotilla jobs watch job_01J… && flotilla jobs result job_01J…', 'the result once it is there'],
  );

  const result = jobs
    .command('result <id>')
    .description('print what the backend answered to a job that was submitted, byte for byte')
    .option('--text', 'only the words of the answer')
    .action(showResult);
  withExamples(
    withClient(result),
    ['flotilla jobs result job_01J… > answer.json', 'the whole answer'],
    ['flotilla jobs result job_01J… --text', 'what the model said'],
  );

  const remove = jobs
    .command('delete <id>')
    .description('erase the request and the result of a submitted job at once; an open one is cancelled')
    .action(deleteJob);
  withExamples(withClient(remove), ['flotilla jobs delete job_01J…', 'what happened to it stays on record']);
}

/** @param words only those of the answer */
export function printResult(result: string, words: boolean): void {
  if (!words) return void process.stdout.write(process.stdout.isTTY ? `${result}\n` : result);
  const said = wordsOf(result);
  if (said === undefined) {
    throw new CommandError(
      'The answer has no words of a chat or a completion.',
      'Leave out --text to see it.',
    );
  }
  print(said);
}

async function watchJob(id: string, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  const serverName = flags.json ? String : await serverNames(client);
  let hinted = flags.json === true;
  for await (const job of client.jobs.watch(id)) {
    print(flags.json ? JSON.stringify(job) : stepText(job, serverName));
    // From here on there may be silence for hours.
    if (job.state === 'queued' && !hinted) note(`Why it waits: flotilla jobs explain ${id}`);
    hinted ||= job.state === 'queued';
    if (job.finished_at !== null && job.state !== 'succeeded') process.exitCode = EXIT.failed;
  }
}

function stepText(job: Job, serverName: NameOf): string {
  const last = job.attempts.at(-1);
  const server = last?.node ?? last?.provider;
  const where = server ? ` on ${serverName(server)}` : '';
  const tries = job.attempts.length > 1 ? `, try ${job.attempts.length}` : '';
  if (job.finished_at !== null) {
    const took = formatDuration(Math.max(0, Date.parse(job.finished_at) - Date.parse(job.created_at)));
    const why = job.error === null ? '' : `: ${job.error.code}: ${job.error.message}`;
    return `${job.state}${where} after ${took}${tries}${why}`;
  }
  if (job.state !== 'queued') return `${job.state}${where}${tries}`;
  const position = job.position === null ? '' : `, ${job.position} before it`;
  const failed = last?.code ? `, the last try ended with ${last.code}` : '';
  return `queued${position}${failed}`;
}

async function showResult(id: string, flags: ClientFlags & { text?: boolean }): Promise<void> {
  const client = await openClient(flags);
  printResult(await client.jobs.resultText(id), flags.text === true);
}

async function deleteJob(id: string, flags: ClientFlags): Promise<void> {
  const client = await openClient(flags);
  await client.jobs.delete(id);
  note(`Request and result of ${id} are erased.`);
}
