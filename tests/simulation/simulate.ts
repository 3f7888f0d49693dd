import { availableParallelism } from 'node:os';
import { parseArgs } from 'node:util';
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads';
import { INVARIANTS } from './invariants.ts';
import { type Outcome, World } from './world.ts';

/**
 * `npm run simulate -- --seeds N [--from S]` runs that many worlds, on as many threads as there are processors.
 * `npm run simulate -- --seed S [--history]` runs one again, and tells the end of its history, or all of it.
 */
type Told = Pick<Outcome, 'seed' | 'violation' | 'events' | 'virtual_ms' | 'jobs'>;
interface Share {
  from: number;
  seeds: number;
  step: number;
}

/** A seed's history ends where its violation is: so much before it tells why. */
const LAST_LINES = 80;
const LINE_MOST = 400;
const SHOWN_MOST = 5;

const USAGE = `npm run simulate -- [--seeds N] [--from S]    so many worlds (1000), from seed S (1) on
npm run simulate -- --seed S [--history]      one world again, with the end of its history, or all of it

Ends with 1 where a world broke a promise; its seed replays it exactly.`;

if (isMainThread) await main();
else await runShare(workerData as Share);

async function main(): Promise<void> {
  const { seeds, from, seed, history } = readArguments();
  const broken = seed === null ? await runSeeds(from, seeds) : await replay(seed, history);
  if (broken > 0) process.exitCode = 1;
}

function readArguments(): { seeds: number; from: number; seed: number | null; history: boolean } {
  try {
    const { values } = parseArgs({
      options: {
        seeds: { type: 'string', default: '1000' },
        from: { type: 'string', default: '1' },
        seed: { type: 'string' },
        history: { type: 'boolean', default: false },
        help: { type: 'boolean', short: 'h', default: false },
      },
    });
    if (values.help) {
      say(USAGE);
      process.exit(0);
    }
    const seed = values.seed === undefined ? null : wholeNumber('seed', values.seed);
    const seeds = wholeNumber('seeds', values.seeds);
    return { seeds, from: wholeNumber('from', values.from), seed, history: values.history };
  } catch (error) {
    process.stderr.write(`${(error as Error).message}\n\n${USAGE}\n`);
    process.exit(2);
  }
}

function wholeNumber(name: string, text: string): number {
  if (!/^[1-9]\d{0,15}$/.test(text))
    throw new Error(`--${name} takes a whole number from 1 on, not ${text}.`);
  return Number(text);
}

/** @returns how many worlds broke a promise */
async function runSeeds(from: number, seeds: number): Promise<number> {
  const began_ms = performance.now();
  const threads = Math.min(availableParallelism(), seeds);
  const all: Told[] = [];
  await Promise.all(
    Array.from({ length: threads }, (_, at) =>
      shareOut({ from: from + at, seeds: Math.ceil((seeds - at) / threads), step: threads }, (told) => {
        all.push(told);
        if (all.length % 1000 === 0) say(`${all.length} of ${seeds} worlds`);
      }),
    ),
  );
  const broken = all.filter(({ violation }) => violation !== null).sort((a, b) => a.seed - b.seed);
  for (const { seed } of broken.slice(0, SHOWN_MOST)) await replay(seed, false);
  const sum = (of: (told: Told) => number) => all.reduce((total, told) => total + of(told), 0);
  const seconds = (performance.now() - began_ms) / 1000;
  say(
    `${all.length} worlds in ${seconds.toFixed(0)} s: ${sum(({ events }) => events)} events, ` +
      `${(sum(({ virtual_ms }) => virtual_ms) / 3_600_000).toPrecision(3)} h of their time, ${sum(({ jobs }) => jobs.ended)} jobs ended, ` +
      `${sum(({ jobs }) => jobs.succeeded)} of them well; ${broken.length} broke a promise` +
      `${broken.length > 0 ? `: ${broken.map(({ seed }) => seed).join(', ')}` : '.'}`,
  );
  return broken.length;
}

function shareOut(share: Share, heard: (told: Told) => void): Promise<void> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL(import.meta.url), { workerData: share });
    worker
      .on('message', heard)
      .on('error', reject)
      .on('exit', () => resolve());
  });
}

async function runShare({ from, seeds, step }: Share): Promise<void> {
  for (let at = 0; at < seeds; at++) {
    const { history: _, ...told } = await new World({ seed: from + at * step }).run();
    parentPort!.postMessage(told satisfies Told);
  }
}

async function replay(seed: number, whole: boolean): Promise<number> {
  const { history, violation, events, virtual_ms } = await new World({ seed, history: true }).run();
  const shown = whole ? history : history.slice(-LAST_LINES).map((line) => line.slice(0, LINE_MOST));
  if (whole || violation !== null) say(shown.join('\n'));
  say(`seed ${seed}: ${events} events in ${(virtual_ms / 1000).toFixed(1)} s of its time`);
  if (violation === null) return 0;
  const { invariant, sentence, at_ms } = violation;
  say(`  ${invariant}, ${INVARIANTS[invariant]}\n  broken at ${at_ms.toFixed(3)} ms: ${sentence}`);
  say(`  all of it: npm run simulate -- --seed ${seed} --history`);
  return 1;
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}
