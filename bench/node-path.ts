import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { appendFile, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { cpus, tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { flotilla } from '../tests/support/program.ts';
import { until } from '../tests/support/until.ts';
import { type World, openWorld } from '../tests/support/world.ts';

/**
 * Requests a second through gateway and node, each recorded before its answer: `wrk` on the same machine, an instant
 * simulated backend, whole answers of a few hundred bytes. Run by hand: `npm run bench:node-path`, with
 * FLOTILLA_TEST_DATABASE_URL for PostgreSQL. Needs `wrk` on the path. Results are appended to bench/results/, except those
 * of a run in which a request failed or was not recorded: that one ends with 1.
 */
const SECONDS = Number(process.env.BENCH_SECONDS ?? 10);
const CONNECTIONS = Number(process.env.BENCH_CONNECTIONS ?? 64);
const SIM_PORT = 7491;
const LOOK_EVERY_MS = 200;
const STILL_LOOKS = 5;
/** A folder for CPU profiles of control plane and daemon; off without it. */
const PROFILES = process.env.BENCH_PROFILES;
const profiled: Record<string, string> =
  PROFILES === undefined ? {} : { NODE_OPTIONS: `--cpu-prof --cpu-prof-dir=${PROFILES}` };

const dir = await mkdtemp(join(tmpdir(), 'flotilla-bench-'));
const sim = flotilla([
  'sim',
  'backend',
  '--port',
  String(SIM_PORT),
  '--instant',
  '--model',
  'scripted',
  '--slots',
  '256',
]);
const world = await openWorld({ heartbeat_ms: 5000, env: { FLOTILLA_LOG_LEVEL: 'warn', ...profiled } });
try {
  await until('the backend listens', () => sim.output().includes(String(SIM_PORT)));
  const node = await world.node({
    name: 'bench',
    backends: [{ url: `http://127.0.0.1:${SIM_PORT}/v1`, slots: 256 }],
    env: { FLOTILLA_LOG_LEVEL: 'warn', ...profiled },
  });
  const script = join(dir, 'post.lua');
  await writeFile(script, lua(world.plane.admin_key));
  wrk(script, 3);
  const before = await settled(world);
  const processes = { control: world.plane.program().pid, daemon: node.program().pid, backend: sim.pid };
  const cpu_before = Object.values(processes).map(cpuSeconds);
  const output = wrk(script, SECONDS);
  const spent = Object.entries(processes).map(
    ([name, pid], index) => [name, cpuSeconds(pid) - cpu_before[index]!] as const,
  );
  await report(output, (await settled(world)) - before, spent);
} finally {
  await world.close();
  await sim.stop();
  await rm(dir, { recursive: true, force: true });
}

function wrk(script: string, seconds: number): string {
  return execFileSync(
    'wrk',
    [
      '-t1',
      `-c${CONNECTIONS}`,
      `-d${seconds}s`,
      '--latency',
      '-s',
      script,
      `${world.plane.url}/v1/chat/completions`,
    ],
    { encoding: 'utf8' },
  );
}

function lua(key: string): string {
  const body = JSON.stringify({ model: 'scripted', messages: [{ role: 'user', content: 'x'.repeat(400) }] });
  return `wrk.method = "POST"
wrk.body = ${JSON.stringify(body)}
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer ${key}"
`;
}

async function recorded({ plane }: World): Promise<number> {
  const { data } = await plane.get<{ data: { requests: number }[] }>('/api/v1/usage/summary');
  return data.reduce((sum, group) => sum + group.requests, 0);
}

/** The count once it stands still: what wrk left behind when its time was over is still being finished and recorded. */
async function settled(of: World): Promise<number> {
  let count = await recorded(of);
  for (let same = 0; same < STILL_LOOKS; ) {
    await pause(LOOK_EVERY_MS);
    const now = await recorded(of);
    same = now === count ? same + 1 : 0;
    count = now;
  }
  return count;
}

/** Processor time of a process with all its threads, in seconds (Linux: in hundredths). */
function cpuSeconds(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

async function report(output: string, rows: number, spent: (readonly [string, number])[]): Promise<void> {
  const [, per_second] = /Requests\/sec:\s+([\d.]+)/.exec(output) ?? [];
  const [, total] = /(\d+) requests in/.exec(output) ?? [];
  const percentile = (p: string) => new RegExp(`${p}%\\s+(\\S+)`).exec(output)?.[1];
  const failed = /Non-2xx or 3xx responses: (\d+)/.exec(output)?.[1] ?? '0';
  const engine = process.env.FLOTILLA_TEST_DATABASE_URL === undefined ? 'PGlite' : 'PostgreSQL';
  const hardware = `${cpus().length} × ${cpus()[0]!.model.trim()}, ${Math.round(totalmem() / 2 ** 30)} GiB, Node ${process.versions.node}`;
  const cpu = spent
    .map(([name, seconds]) => `${name} ${Math.round((seconds / Number(total)) * 1e6)}`)
    .join(', ');
  const line =
    `| ${new Date().toISOString().slice(0, 10)} | ${engine} | ${CONNECTIONS} | ${per_second} | ${percentile('50')} | ${percentile('99')} ` +
    `| ${total} | ${failed} | ${rows} | ${cpu} | ${hardware} |\n`;
  process.stdout.write(`${output}\n${line}`);
  const socket_errors = /Socket errors: .*/.exec(output)?.[0];
  const faults = [
    ...(Number(total ?? 0) === 0 ? ['wrk was answered nothing'] : []),
    ...(rows < Number(total) ? [`${Number(total) - rows} requests were not recorded`] : []),
    ...(failed === '0' ? [] : [`${failed} answers were no success`]),
    ...(socket_errors === undefined ? [] : [socket_errors]),
  ];
  if (faults.length > 0) {
    process.stderr.write(`This run counts for nothing: ${faults.join('; ')}.\n`);
    process.exitCode = 1;
    return;
  }
  await appendFile(new URL('results/node-path.md', import.meta.url), line);
}
