import { parseArgs } from 'node:util';
import { BUSY, hardware, memoryLatency, othersAtWork } from './hardware.ts';
import { installPeers } from './peers.ts';
import { interrupt, interruptOnSignals } from './interrupt.ts';
import { keep, pageOf } from './report.ts';
import type { Scenario } from './scenario.ts';
import { accept } from './scenarios/accept.ts';
import { depth } from './scenarios/depth.ts';
import { failover } from './scenarios/failover.ts';
import { fleet } from './scenarios/fleet.ts';
import { footprint } from './scenarios/footprint.ts';
import { lifecycles } from './scenarios/lifecycles.ts';
import { paths } from './scenarios/paths.ts';
import { slowStreams } from './scenarios/slow-streams.ts';
import { startServer } from './script.ts';

/**
 * `npm run bench`: measures everything, or the scenarios that are named, and keeps what it found in `results/`. It
 * shares the machine with all that it measures; a run beside other work says so in its pages.
 */
const SCENARIOS: Scenario[] = [paths, slowStreams, accept, lifecycles, fleet, depth, failover, footprint];

const USAGE = `npm run bench -- [scenario…] [--quick] [--rounds N] [--seconds S] [--profile DIR]

Scenarios (all of them, if none is named):
${SCENARIOS.map(({ name, about }) => `  ${name.padEnd(12)} ${about}`).join('\n')}

  --quick            few rounds, short and small ones; nothing is kept: to see whether everything runs
  --rounds N         rounds in which the targets take turns (5)
  --seconds S        of each turn, or each window (3)
  --load-minutes M   how long footprint holds its load (60; quick: 0.1)
  --profile DIR      CPU profiles of control planes and daemons go there; the figures are those of profiled programs
  --held-minutes M   how long each queue of depth is at work, half of them with a transaction open (10; quick: 0.1)

DATABASE_URL    a PostgreSQL server on which databases may be made; without it what needs one is left out
NATS_URL        NATS, for two replicas
BullMQ gets a redis-server of its own, where the machine has the program. Peers: npm ci --prefix bench, done here.`;

const { values, positionals } = readArguments();
const unknown = positionals.filter((name) => SCENARIOS.every((scenario) => scenario.name !== name));
if (unknown.length > 0) refuse(`No such scenario: ${unknown.join(', ')}.`);
if (values.help) {
  process.stdout.write(`${USAGE}\n`);
  process.exit(0);
}
const quick = values.quick;
const number = (name: 'rounds' | 'seconds' | 'load-minutes' | 'held-minutes', otherwise: number): number => {
  const value = Number(values[name] ?? otherwise);
  return value > 0 && value < Infinity ? value : refuse(`--${name} takes a number above 0.`);
};
const stage = {
  quick,
  rounds: Math.ceil(number('rounds', quick ? 2 : 5)),
  for_ms: number('seconds', quick ? 1 : 3) * 1000,
  load_ms: number('load-minutes', quick ? 0.1 : 60) * 60_000,
  held_ms: number('held-minutes', quick ? 0.1 : 10) * 60_000,
  say,
};
interruptOnSignals();
installPeers(say);
const chosen = SCENARIOS.filter(({ name }) => positionals.length === 0 || positionals.includes(name));
const backend = await startServer('backend.ts');
try {
  say(hardware());
  for (const scenario of chosen) {
    say(`— ${scenario.name}: ${scenario.about}`);
    const before = await othersAtWork();
    const memory_before_ns = memoryLatency();
    if (before > BUSY)
      say(`Others take ${Math.round(before * 100)} % of the processors: the figures will say so.`);
    const report = await scenario.run({
      ...stage,
      place: {
        backend_port: backend.port,
        database_url: process.env['DATABASE_URL'],
        nats_url: process.env['NATS_URL'],
        profile_dir: values.profile,
      },
    });
    interrupt.signal.throwIfAborted();
    const busy_share = Math.max(before, await othersAtWork());
    const memory_ns: [number, number] = [memory_before_ns, memoryLatency()];
    const ran = { busy_share, memory_ns, command: commandOf(scenario) };
    process.stdout.write(`${quick ? pageOf(report, ran) : await keep(report, ran)}\n`);
  }
} catch (error) {
  if (!interrupt.signal.aborted) throw error;
  process.exitCode = 130;
} finally {
  await backend.stop();
}

function commandOf({ name }: Scenario): string {
  const options = Object.entries(values).flatMap(([option, value]) =>
    value === false || option === 'profile'
      ? []
      : value === true
        ? [`--${option}`]
        : [`--${option} ${value}`],
  );
  return ['npm run bench --', name, ...options].join(' ');
}

function readArguments() {
  const text = { type: 'string' } as const;
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        quick: { type: 'boolean', default: false },
        rounds: text,
        seconds: text,
        'load-minutes': text,
        'held-minutes': text,
        profile: text,
        help: { type: 'boolean', short: 'h', default: false },
      },
    });
  } catch (error) {
    return refuse((error as Error).message);
  }
}

function refuse(why: string): never {
  process.stderr.write(`${why}\n\n${USAGE}\n`);
  process.exit(2);
}

function say(what: string): void {
  process.stderr.write(`${what}\n`);
}
