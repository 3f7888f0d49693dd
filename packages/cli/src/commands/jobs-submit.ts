import { randomUUID } from 'node:crypto';
import { open, readFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { text } from 'node:stream/consumers';
import { OPERATIONS } from '@flotilla/protocol';
import type { Flotilla, Job } from '@flotilla/sdk';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { type ClientFlags, openClient, withClient } from '../client.ts';
import { CommandError, EXIT, UsageError } from '../failure.ts';
import { withExamples } from '../help.ts';
import { type Submitted, submitLines, waitForAll, waitForResult } from '../jobs/batch.ts';
import { type JobFlags, jobText } from '../jobs/job-text.ts';
import { collectLabel, duration } from '../parse.ts';
import { note, print, printJson } from '../terminal/output.ts';
import { plural } from '../terminal/text.ts';
import { printResult } from './jobs-watch.ts';

interface SubmitFlags extends ClientFlags {
  model?: string;
  message?: string;
  operation?: JobFlags['operation'];
  priority?: number;
  metadata?: Record<string, string>;
  queueTimeout?: number;
  runTimeout?: number;
  keep?: number;
  lines?: boolean;
  idempotencyKey?: string;
  wait?: boolean;
  text?: boolean;
}

export function addSubmit(jobs: Command): void {
  const submit = jobs
    .command('submit [file]')
    .description(
      'submit work that nobody waits for: the body of a request or a whole job, from a file, stdin or flags',
    )
    .option('-m, --model <model>', 'which one, where the request names none')
    .option('--message <text>', 'a chat of this one message, instead of a file')
    .option('--lines', 'each line is one (JSON Lines; also by the names *.jsonl and *.ndjson)')
    .option('--wait', 'wait for the end and print the result; the exit code is 0 where it succeeded')
    .option('--text', 'with --wait: only the words of the answer')
    .option(
      '--idempotency-key <key>',
      'submitting again with it gives the same job; of lines, it begins their own keys',
    )
    .optionsGroup('Where a request is given, not a whole job:')
    .addOption(new Option('--operation <operation>', 'what it asks for (default: chat)').choices(OPERATIONS))
    .option('--priority <n>', '-10 to 10: larger goes first, a step is worth a minute', priority)
    .option('--metadata <key=value>', 'kept with the job (several times)', collectLabel)
    .option('--queue-timeout <time>', 'how long it may wait, like 2h (default: 24h)', duration)
    .option('--run-timeout <time>', 'how long it may run, like 10m', duration)
    .option('--keep <time>', 'how long request and result are kept after its end (default: 24h)', duration)
    .optionsGroup('Options:')
    .action(runSubmit);
  withExamples(
    withClient(submit),
    [
      'flotilla jobs submit -m MODEL --message "Why is the sky blue?" --wait --text',
      'the answer, as soon as a machine has found time for it; MODEL is one of `flotilla models`',
    ],
    ['flotilla jobs submit request.json', "prints the job's id: the body is that of /v1/chat/completions"],
    [
      'flotilla jobs submit night.jsonl',
      'a job a line, in batches; run again after a failure, no line becomes a second job',
    ],
    ['flotilla jobs submit night.jsonl --wait --json > answers.jsonl', 'each job with its result, in order'],
  );
}

function priority(value: string): number {
  const number = Number(value);
  if (value.trim() === '' || !Number.isInteger(number) || Math.abs(number) > 10) {
    throw new InvalidArgumentError('A whole number from -10 to 10 is expected.');
  }
  return number;
}

async function runSubmit(file: string | undefined, flags: SubmitFlags): Promise<void> {
  if (flags.text === true && flags.wait !== true) {
    throw new UsageError('--text is about a result: add --wait.');
  }
  const given = jobFlags(flags);
  const isLines = flags.lines ?? (file !== undefined && /\.(jsonl|ndjson)$/i.test(file));
  if (!isLines) {
    const job = oneJob(await readOne(file, flags), given);
    return submitOne(await openClient(flags), job, flags);
  }
  if (flags.message !== undefined) throw new UsageError('Give --message or lines, not both.');
  if (flags.text === true) throw new UsageError('Of several jobs the results come with --json, not --text.');
  return submitAll(await openClient(flags), file, given, flags);
}

function jobFlags(flags: SubmitFlags): JobFlags {
  const { model, operation, priority: order, metadata, queueTimeout, runTimeout, keep } = flags;
  const all = {
    model,
    operation,
    priority: order,
    metadata,
    queue_timeout_ms: queueTimeout,
    run_timeout_ms: runTimeout,
    retention_ms: keep,
  };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined));
}

async function readOne(file: string | undefined, { message }: SubmitFlags): Promise<string> {
  if (message !== undefined) {
    if (file !== undefined) throw new UsageError('Give a file or --message, not both.');
    return JSON.stringify({ messages: [{ role: 'user', content: message }] });
  }
  if (file !== undefined && file !== '-') {
    return readFile(file, 'utf8').catch(unreadable(file));
  }
  const written = file === undefined && process.stdin.isTTY ? '' : await text(process.stdin);
  if (written.trim() === '') {
    throw new UsageError(
      'There is nothing to submit.',
      'Give a file, --message, or a request on stdin; - is stdin.',
    );
  }
  return written;
}

function oneJob(written: string, flags: JobFlags): string {
  try {
    return jobText(written, flags);
  } catch (error) {
    throw new UsageError((error as Error).message, 'How it is written: flotilla jobs submit --help', {
      cause: error,
    });
  }
}

async function submitOne(client: Flotilla, job: string, flags: SubmitFlags): Promise<void> {
  const idempotency_key = flags.idempotencyKey ?? randomUUID();
  const accepted = await client.jobs.submit(job, { idempotency_key });
  const { id, existing } = accepted;
  if (flags.wait === true) {
    note(
      `Job ${id} is ${existing ? 'one that was submitted before' : 'accepted'}. If this is stopped, it goes on.\n` +
        `Where it is, or why it waits: flotilla jobs explain ${id}`,
    );
    const ended = await waitFor(client, id, flags);
    if (flags.json) {
      printJson(ended);
      if (ended.state !== 'succeeded') process.exitCode = EXIT.failed;
      return;
    }
    if (ended.state === 'succeeded')
      return printResult(await client.jobs.resultText(id), flags.text === true);
    const { code, message } = ended.error ?? { code: ended.state, message: 'No reason is known.' };
    throw new CommandError(`Job ${id} ended: ${code}: ${message}`, `Its attempts: flotilla jobs show ${id}`);
  }
  if (flags.json) return printJson(accepted);
  print(id);
  note(`${existing ? 'It was submitted before' : 'Accepted'}. Its end: flotilla jobs watch ${id}`);
}

async function submitAll(
  client: Flotilla,
  file: string | undefined,
  given: JobFlags,
  flags: SubmitFlags,
): Promise<void> {
  const tally = { accepted: 0, existing: 0, refused: 0 };
  const ids: string[] = [];
  const lines_of: number[] = [];
  const lines = await linesOf(file);
  try {
    for await (const batch of submitLines(client, lines, given, keyPrefix(flags))) {
      for (const one of batch) {
        count(one, tally);
        tell(one, flags);
        if ('error' in one.verdict) continue;
        ids.push(one.verdict.id);
        lines_of.push(one.line);
      }
      note(`${plural(ids.length + tally.refused, 'line')}: ${tallyText(tally)}`);
    }
  } catch (error) {
    const { message } = error as Error;
    throw new CommandError(
      `${tallyText(tally)}, then it failed: ${message}`,
      'Run the same command again: a line that was accepted does not become a second job.',
      { cause: error },
    );
  }
  if (ids.length + tally.refused === 0) throw new UsageError('There is no line with a job.');
  if (tally.refused > 0) process.exitCode = EXIT.failed;
  if (flags.wait !== true) return;
  let place = 0;
  for await (const job of waitForAll(ids, (id) => waitFor(client, id, flags))) {
    const line = lines_of[place++]!;
    if (flags.json) print(JSON.stringify({ line, ...job }));
    else print(`${job.id} ${job.state}${job.error === null ? '' : ` (${job.error.code})`}`);
    if (job.state !== 'succeeded') process.exitCode = EXIT.failed;
  }
}

/** The job once it has ended; for programs with its result. */
function waitFor(client: Flotilla, id: string, { json }: SubmitFlags): Promise<Job> {
  return json ? waitForResult(client, id) : client.jobs.wait(id);
}

async function linesOf(file: string | undefined): Promise<AsyncIterable<string>> {
  if (file === undefined || file === '-')
    return createInterface({ input: process.stdin, crlfDelay: Infinity });
  return (await open(file).catch(unreadable(file))).readLines();
}

function unreadable(file: string): (error: Error) => never {
  return (cause) => {
    throw new CommandError(`${file} cannot be read: ${cause.message}`, undefined, { cause });
  };
}

function keyPrefix({ idempotencyKey }: SubmitFlags): string {
  return idempotencyKey === undefined ? '' : `${idempotencyKey}-`;
}

function count({ verdict }: Submitted, tally: { accepted: number; existing: number; refused: number }): void {
  if ('error' in verdict) tally.refused++;
  else if (verdict.existing) tally.existing++;
  else tally.accepted++;
}

function tell({ line, verdict }: Submitted, { json, wait }: SubmitFlags): void {
  if ('error' in verdict) note(`line ${line}: ${verdict.error.code}: ${verdict.error.message}`);
  // With --wait each line is told of once, at its end; what is refused has come to its own.
  if (json && (wait !== true || 'error' in verdict)) print(JSON.stringify({ line, ...verdict }));
  else if (!json && wait !== true && !('error' in verdict)) print(verdict.id);
}

function tallyText({
  accepted,
  existing,
  refused,
}: Record<'accepted' | 'existing' | 'refused', number>): string {
  const before = existing === 0 ? '' : `, ${existing} submitted before`;
  return `${accepted} accepted${before}${refused === 0 ? '' : `, ${refused} refused`}`;
}
