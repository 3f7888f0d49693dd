import { rm } from 'node:fs/promises';
import { cpus, tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { runChaos, seconds } from './chaos.ts';

/**
 * The long form, by hand: `npm run chaos -- --jobs 100000 --nodes 20`. Ends with 1 where a promise is broken, and leaves
 * the history for whoever looks for the cause; else with a row for bench/results/chaos.md.
 */
const USAGE = `npm run chaos -- [--jobs N] [--nodes N] [--replicas N] [--minutes N] [--seed S] [--spread]
                 [--gap_ms N] [--heartbeat_ms N] [--askers N]

Needs the programs postgres, initdb and nats-server. Ends with 1 where a promise is broken; the history is left then.`;
const values = readArguments();
const began_ms = performance.now();
const print = (text: string) =>
  void process.stdout.write(`${seconds(performance.now() - began_ms)} s: ${text}\n`);
const seed = Number(values.seed);
const path = join(tmpdir(), `flotilla-chaos-${seed}-${Date.now()}.jsonl`);
print(`seed ${seed}, history in ${path}`);
const { violations, faults, broken_ms, open_jobs, settled_ms, counts } = await runChaos({
  seed,
  jobs: Number(values.jobs),
  for_ms: Number(values.minutes) * 60_000,
  until_done: !values.spread,
  replicas: Number(values.replicas),
  nodes: Number(values.nodes),
  slots: 16,
  heartbeat_ms: Number(values.heartbeat_ms),
  gap_ms: Number(values.gap_ms),
  askers: Number(values.askers),
  batch: 200,
  path,
  print,
});
const total = [...faults.values()].reduce((sum, count) => sum + count, 0);
for (const violation of violations.slice(0, 50)) print(JSON.stringify(violation));
print(`${violations.length} violations`);
print(
  `| ${new Date().toISOString().slice(0, 10)} | ${counts.jobs} | ${values.replicas}, ${values.nodes} | ${total} in ${seconds(broken_ms)} s | ` +
    `${open_jobs ?? '?'}, ${seconds(settled_ms)} s | ${counts.asked} times | ${counts.whole} of ${counts.streams} + ${counts.wholes} | ${violations.length} | ${seed} | ` +
    `${cpus().length} × ${cpus()[0]?.model.trim()}, ${Math.round(totalmem() / 2 ** 30)} GiB, Node ${process.versions.node} |`,
);
if (violations.length === 0) await rm(path);
process.exitCode = violations.length === 0 ? 0 : 1;

function readArguments() {
  try {
    const { values: read } = parseArgs({
      options: {
        help: { type: 'boolean', short: 'h', default: false },
        jobs: { type: 'string', default: '20000' },
        minutes: { type: 'string', default: '10' },
        seed: { type: 'string', default: String(Math.floor(Math.random() * 2 ** 31)) },
        nodes: { type: 'string', default: '8' },
        replicas: { type: 'string', default: '3' },
        gap_ms: { type: 'string', default: '1500' },
        heartbeat_ms: { type: 'string', default: '2500' },
        askers: { type: 'string', default: '2' },
        /** Break things for all of the time, and spread the jobs over it; else no longer than the jobs need. */
        spread: { type: 'boolean', default: false },
      },
    });
    const { help, spread, ...numbers } = read;
    if (help) {
      process.stdout.write(`${USAGE}\n`);
      process.exit(0);
    }
    for (const [name, text] of Object.entries(numbers)) {
      if (!/^\d+(\.\d+)?$/.test(text)) throw new Error(`--${name} takes a number, not ${text}.`);
    }
    return { ...numbers, spread };
  } catch (error) {
    process.stderr.write(`${(error as Error).message}\n\n${USAGE}\n`);
    process.exit(2);
  }
}
