import { processUse } from '../hardware.ts';
import { median } from '../histogram.ts';
import { generate, type Measured } from '../load.ts';
import { figure } from '../figure.ts';
import { type Goal, type Report, spread, type Table } from '../report.ts';
import { difference, interleave, type Paired, ratio } from '../rounds.ts';
import type { Scenario, Stage } from '../scenario.ts';
import { available, MODEL, type Target, TARGETS } from '../targets.ts';

/**
 * Requests a second and their time, through the node path and the provider path, beside the backend itself, the bare
 * floors and a peer.
 */
interface Cell {
  connections: number;
  body_bytes: number;
  /** 0: a whole answer. */
  events: number;
}

const CELLS: Cell[] = [
  { connections: 1, body_bytes: 500, events: 0 },
  { connections: 10, body_bytes: 500, events: 0 },
  { connections: 64, body_bytes: 500, events: 0 },
  { connections: 256, body_bytes: 500, events: 0 },
  { connections: 64, body_bytes: 10_000, events: 0 },
  { connections: 64, body_bytes: 100_000, events: 0 },
  { connections: 1, body_bytes: 500, events: 20 },
  { connections: 16, body_bytes: 500, events: 20 },
  { connections: 64, body_bytes: 500, events: 20 },
  { connections: 16, body_bytes: 500, events: 500 },
];

/** What each target is warmed with. */
const [WHOLE, STREAM] = [CELLS[2]!, CELLS[7]!];
/** In less, V8 has not yet compiled what a target does with each request, and the longest code is the slowest. */
const WARM_MS = 8000;
const QUICK_WARM_MS = 500;
/**
 * Before each window, and not counted: while others had their turn, what a target works with has left the processor's
 * caches, and who has the longest code and the most data loses most by that.
 */
const LEAD_MS = 750;

interface Round extends Measured {
  /** Processor time of the target's own processes for each request, in µs; null where the system does not say. */
  cpu_us: number | null;
  memory_mib: number | null;
}

interface Result {
  cell: Cell;
  targets: { name: string; rounds: Round[] }[];
}

export const paths: Scenario = {
  name: 'paths',
  about: 'node path and provider path, beside the floors and a peer',
  async run(stage) {
    const { names, missing } = available(stage.place);
    for (const [name, why] of Object.entries(missing)) stage.say(`${name} is left out: ${why}.`);
    const targets: Target[] = [];
    try {
      for (const name of names) {
        stage.say(`Starting ${name}.`);
        targets.push(await TARGETS[name]!.start(stage.place));
      }
      for (const cell of [WHOLE, STREAM]) {
        for (const target of targets) await measure(target, cell, stage.quick ? QUICK_WARM_MS : WARM_MS);
      }
      const results: Result[] = [];
      for (const cell of stage.quick ? CELLS.filter((_, index) => [0, 2, 7].includes(index)) : CELLS) {
        stage.say(nameOf(cell));
        const found = await interleave(targets, stage.rounds, async (target) => {
          await measure(target, cell, LEAD_MS);
          return measure(target, cell, stage.for_ms);
        });
        results.push({
          cell,
          targets: [...found].map(([{ name }, rounds]) => ({ name, rounds })),
        });
      }
      return reportOf(results, missing, stage);
    } finally {
      for (const target of targets.reverse()) await target.stop();
    }
  },
};

async function measure(target: Target, cell: Cell, for_ms: number): Promise<Round> {
  const before = target.pids.map(processUse);
  const measured = await generate({
    url: target.url,
    headers: target.headers,
    body: bodyOf(cell),
    connections: cell.connections,
    for_ms,
    expects: '[DONE]',
  });
  const after = target.pids.map(processUse);
  const known = target.pids.length > 0 && [...before, ...after].every((use) => use !== null);
  const cpu_s = known ? after.reduce((sum, use, at) => sum + use!.cpu_s - before[at]!.cpu_s, 0) : 0;
  return {
    ...measured,
    cpu_us: known ? (cpu_s * 1e6) / Math.max(1, measured.requests) : null,
    memory_mib: known ? after.reduce((sum, use) => sum + use!.memory_mib, 0) : null,
  };
}

function bodyOf({ body_bytes, events }: Cell): Buffer {
  const body = (content: string) =>
    JSON.stringify({
      model: MODEL,
      messages: [{ role: 'user', content }],
      // A client that does not ask for usage has its stream's usage taken out again: as most do not, so do we.
      ...(events > 0 && { stream: true, events }),
    });
  return Buffer.from(body('x'.repeat(Math.max(1, body_bytes - body('').length))));
}

function nameOf({ connections, body_bytes, events }: Cell): string {
  const answer = events === 0 ? 'whole answers' : `streams of ${events + 1} events`;
  return `${connections} connections, bodies of ${body_bytes / 1000} kB, ${answer}`;
}

function reportOf(results: Result[], missing: Record<string, string>, stage: Stage): Report {
  return {
    name: 'paths',
    title: 'The node path and the provider path',
    about:
      'A closed loop of requests from the bench’s own load generator to the bench’s own instant backend: directly, through ' +
      'the bare floors in Node (a one-hop proxy; a two-hop relay to a node that has dialled out; the recording floor, which is ' +
      'that relay awaiting one batched row a request on the same store), through Portkey’s gateway, and through Flotilla, ' +
      'every request authenticated and recorded. Load generator, backend, targets, PostgreSQL and NATS share the machine. ' +
      `After ${WARM_MS / 1000} s of whole answers and as many of streams each, targets take turns within each of ${stage.rounds} rounds of ${stage.for_ms / 1000} s, each after ${LEAD_MS / 1000} s that are not counted; ratios are of pairs of a round: ` +
      'the median, and the lowest and highest. Processor time and memory are of the target’s own processes, PGlite in them, ' +
      'PostgreSQL and NATS not.' +
      Object.entries(missing)
        .map(([name, why]) => ` ${name} was left out (${why}).`)
        .join(''),
    goals: goalsOf(results),
    tables: results.map(tableOf),
    plots: [
      { name: 'whole', title: 'Whole answers a second', unit: '/s', groups: groupsOf(results, false) },
      { name: 'streams', title: 'Streams a second', unit: '/s', groups: groupsOf(results, true) },
    ],
    data: results,
  };
}

function groupsOf(results: Result[], streams: boolean) {
  return results
    .filter(({ cell }) => cell.events > 0 === streams)
    .map(({ cell, targets }) => ({
      label: nameOf(cell),
      bars: targets
        .filter(({ name }) => name !== 'direct')
        .map(({ name, rounds }) => ({ name, value: median(rounds.map((round) => round.per_second)) })),
    }));
}

function tableOf({ cell, targets }: Result): Table {
  return {
    title: nameOf(cell),
    columns: ['', 'a second', 'p50 ms', 'p99 ms', 'first byte p50 ms', 'CPU µs a request', 'MiB', 'failed'],
    rows: targets.map(({ name, rounds }) => {
      const of = (value: (round: Round) => number) => figure(median(rounds.map(value)));
      return [
        name,
        of((round) => round.per_second),
        of((round) => round.latency.p50),
        of((round) => round.latency.p99),
        of((round) => round.first_byte.p50),
        rounds[0]!.cpu_us === null ? '–' : of((round) => round.cpu_us!),
        rounds[0]!.memory_mib === null ? '–' : of((round) => round.memory_mib!),
        String(rounds.reduce((sum, { failed }) => sum + failed, 0)),
      ];
    }),
  };
}

/** The promises of the path, each from pairs of the same round. */
function goalsOf(results: Result[]): Goal[] {
  const cell = (connections: number, events: number) =>
    results.find(
      ({ cell: one }) => one.connections === connections && one.events === events && one.body_bytes === 500,
    );
  const values = (result: Result | undefined, name: string, value: (round: Round) => number) =>
    result?.targets.find((target) => target.name === name)?.rounds.map(value);
  const goal = (
    what: string,
    result: Result | undefined,
    [of, to]: [string, string],
    value: (round: Round) => number,
    how: (of: number[], to: number[]) => Paired,
    [said, unit, reached]: [string, string, (measured: number) => boolean],
  ): Goal => {
    const [a, b] = [values(result, of, value), values(result, to, value)];
    if (a === undefined || b === undefined)
      return { what, goal: said, measured: 'one of the two was left out', reached: null };
    const found = how(a, b);
    const failed = result!.targets
      .find(({ name }) => name === of)!
      .rounds.reduce((sum, round) => sum + round.failed, 0);
    // Who answers some requests with a quick failure would be fast.
    const measured = spread(found, unit) + (failed === 0 ? '' : `, and ${failed} requests failed`);
    return { what, goal: said, measured, reached: failed === 0 && reached(found.median) };
  };
  const rate = (round: Round) => round.per_second;
  const at_64 = cell(64, 0);
  const at_1 = cell(1, 0);
  const streams = cell(16, 20);
  const least = (share: number): [string, string, (measured: number) => boolean] => [
    `≥ ${share} ×`,
    ' ×',
    (measured) => measured >= share,
  ];
  const most = (limit_ms: number): [string, string, (measured: number) => boolean] => [
    `≤ ${limit_ms} ms`,
    ' ms',
    (measured) => measured <= limit_ms,
  ];
  const node = 'Flotilla node, PostgreSQL';
  const provider = 'Flotilla provider, PostgreSQL';
  const portkey = 'Portkey 1.15.2';
  return [
    goal(
      'node path, 64 connections, to the recording floor',
      at_64,
      [node, 'recording floor, PostgreSQL'],
      rate,
      ratio,
      least(0.7),
    ),
    goal(
      'the same on PGlite',
      at_64,
      ['Flotilla node, PGlite', 'recording floor, PGlite'],
      rate,
      ratio,
      least(0.7),
    ),
    goal(
      'node path, 64 connections, to the bare two-hop floor',
      at_64,
      [node, 'two-hop floor'],
      rate,
      ratio,
      least(0.5),
    ),
    goal('node path, 64 connections, to Portkey', at_64, [node, portkey], rate, ratio, least(8)),
    goal(
      'provider path, 64 connections, to the one-hop floor',
      at_64,
      [provider, 'one-hop floor'],
      rate,
      ratio,
      least(0.5),
    ),
    goal('provider path, 64 connections, to Portkey', at_64, [provider, portkey], rate, ratio, least(8)),
    goal(
      'added over the two-hop floor at 1 connection, p50',
      at_1,
      [node, 'two-hop floor'],
      (round) => round.latency.p50,
      difference,
      most(1),
    ),
    goal(
      'added over the two-hop floor at 1 connection, p99',
      at_1,
      [node, 'two-hop floor'],
      (round) => round.latency.p99,
      difference,
      most(3),
    ),
    goal(
      'streams of 21 events, 16 connections, to the two-hop floor',
      streams,
      [node, 'two-hop floor'],
      rate,
      ratio,
      least(0.7),
    ),
    goal(
      'their first byte after the floor’s, p50',
      streams,
      [node, 'two-hop floor'],
      (round) => round.first_byte.p50,
      difference,
      most(1),
    ),
  ];
}
