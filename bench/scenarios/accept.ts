import { setTimeout as pause } from 'node:timers/promises';
import { median, type Spread, spreadOf } from '../histogram.ts';
import { NODES, type NodeKind, startNode } from '../nodes/start.ts';
import { openLoop } from '../open-loop.ts';
import { order } from '../orders.ts';
import { figure } from '../figure.ts';
import { goalOf, type Report, SPREAD_COLUMNS, spreadCells, type Table } from '../report.ts';
import { interleave, middle } from '../rounds.ts';
import type { Scenario, Stage } from '../scenario.ts';
import { benchKey, MODEL, openFlotilla } from '../targets.ts';

/** From the client's sending of a detached job until the node has it, and until the client has its 202. */
interface Target {
  name: string;
  store: 'PostgreSQL' | 'PGlite';
  node: NodeKind;
  url: string;
  headers: Record<string, string>;
  port: number;
  stop(): Promise<void>;
}

interface Round {
  sent: number;
  /** Refused, or never seen at the node. */
  lost: number;
  failure: string | null;
  started: Spread;
  accepted: Spread;
  late: Spread;
}

interface Row {
  per_second: number;
  target: string;
  rounds: Round[];
}

const RATES = [200, 2000];
const WARM_MS = 5000;
const QUICK_WARM_MS = 500;

export const accept: Scenario = {
  name: 'accept',
  about: 'detached jobs: from sending to the node having it, at 200 and 2,000 a second',
  async run(stage) {
    const targets: Target[] = [];
    try {
      const missing: string[] = [];
      for (const store of ['PostgreSQL', 'PGlite'] as const) {
        if (store === 'PostgreSQL' && stage.place.database_url === undefined) {
          missing.push('PostgreSQL was left out: give DATABASE_URL.');
          continue;
        }
        for (const node of NODES) targets.push(await start(stage, store, node));
      }
      const rows: Row[] = [];
      for (const target of targets) await measure(target, RATES[1]!, stage.quick ? QUICK_WARM_MS : WARM_MS);
      for (const per_second of RATES) {
        stage.say(`${per_second} jobs a second`);
        // Percentiles of a few seconds at 200 a second would be those of a handful of jobs.
        const for_ms = stage.for_ms * (stage.quick ? 1 : 3);
        const found = await interleave(targets, stage.rounds, (target) =>
          measure(target, per_second, for_ms),
        );
        rows.push(...[...found].map(([{ name }, rounds]) => ({ per_second, target: name, rounds })));
      }
      return reportOf(rows, missing, stage);
    } finally {
      for (const target of targets) await target.stop();
    }
  },
};

async function start(stage: Stage, store: Target['store'], kind: NodeKind): Promise<Target> {
  const name = `${store}, ${kind}`;
  stage.say(`Starting ${name}.`);
  const world = await openFlotilla(stage.place, store === 'PGlite' ? 'embedded' : 'postgres');
  const node = await startNode(kind, world, stage.place);
  return {
    name,
    store,
    node: kind,
    url: `${world.plane.url}/api/v1/jobs`,
    headers: { authorization: `Bearer ${await benchKey(world.plane)}` },
    port: node.port,
    async stop() {
      await node.stop();
      await world.close();
    },
  };
}

async function measure({ url, headers, port }: Target, per_second: number, for_ms: number): Promise<Round> {
  await order(port, 'arrivals');
  const opened = await openLoop({
    url,
    headers,
    per_second,
    for_ms,
    bodyOf: (bench_n) =>
      Buffer.from(
        JSON.stringify({
          kind: 'inference',
          model: MODEL,
          request: { messages: [{ role: 'user', content: 'Hello' }], bench_n },
        }),
      ),
    wanted: { status: 202, expects: Buffer.from('"queued"') },
  });
  const sent = opened.sent_ms.length;
  const came_ms = new Map<number, number>();
  const patient_until_ms = performance.now() + 10_000;
  while (true) {
    for (const [n, at_ms] of await order<[number, number][]>(port, 'arrivals')) came_ms.set(n, at_ms);
    if (came_ms.size >= sent - opened.failed || performance.now() > patient_until_ms) break;
    await pause(50);
  }
  const took = opened.sent_ms.flatMap((at_ms, n) => {
    const came = came_ms.get(n);
    return came === undefined || Number.isNaN(at_ms) ? [] : [came - at_ms];
  });
  return {
    sent,
    lost: sent - took.length,
    failure: opened.failure,
    started: spreadOf(Float64Array.from(took)),
    accepted: opened.answered,
    late: opened.late,
  };
}

function reportOf(rows: Row[], missing: string[], stage: Stage): Report {
  return {
    name: 'accept',
    title: 'Accept to start',
    about:
      'Single jobs are submitted over HTTP at a fixed rate, whatever becomes of those before them (an open loop), with a key ' +
      'that has limits. Measured from the sending to the moment at which the node has the whole request: a node of the bench ' +
      'that does nothing and is done at once, or the real daemon, whose instant backend is asked then; and to the 202. A 202 is ' +
      'sent when the job is committed, an offer when its claim is. Generator, control plane, store, node and backend share the ' +
      `machine. ${stage.rounds} rounds, interleaved; each figure is the median of its rounds’. “Late” is how late the generator ` +
      `itself was at p99: where that is near a figure, the machine is what was measured. ${missing.join(' ')}`,
    goals: goalsOf(rows),
    tables: RATES.flatMap((per_second) => tablesOf(rows, per_second)),
    plots: [
      {
        name: 'start',
        title: 'From sending to the node having it, p99',
        unit: 'ms',
        groups: RATES.map((rate) => ({
          label: `${rate} jobs a second`,
          bars: rows
            .filter(({ per_second }) => per_second === rate)
            .map(({ target, rounds }) => ({
              name: target,
              value: usual(rounds.map(({ started }) => started)).p99,
            })),
        })),
      },
    ],
    data: rows,
  };
}

function tablesOf(all: Row[], per_second: number): Table[] {
  const rows = all.filter((row) => row.per_second === per_second);
  const table = (title: string, spread: (round: Round) => Spread): Table => ({
    title: `${title}, ${per_second} jobs a second`,
    columns: ['', ...SPREAD_COLUMNS, 'late p99 ms', 'sent', 'lost'],
    rows: rows.map(({ target, rounds }) => [
      target,
      ...spreadCells(usual(rounds.map(spread))),
      figure(median(rounds.map(({ late }) => late.p99))),
      String(rounds.reduce((sum, { sent }) => sum + sent, 0)),
      String(rounds.reduce((sum, { lost }) => sum + lost, 0)),
    ]),
  });
  return [
    table('From sending to the node having it', ({ started }) => started),
    table('From sending to the 202', ({ accepted }) => accepted),
  ];
}

/** Of each percentile the median of the rounds. */
function usual(spreads: Spread[]): Spread {
  const of = (share: (spread: Spread) => number) => median(spreads.map(share));
  return {
    count: spreads.reduce((sum, { count }) => sum + count, 0),
    p50: of(({ p50 }) => p50),
    p90: of(({ p90 }) => p90),
    p99: of(({ p99 }) => p99),
    most: of(({ most }) => most),
  };
}

function goalsOf(rows: Row[]) {
  return (['PostgreSQL', 'PGlite'] as const).flatMap((store) =>
    (
      [
        [200, 'p50', 3],
        [200, 'p99', 12],
        [2000, 'p99', 40],
      ] as const
    ).map(([per_second, share, most_ms]) => {
      const row = rows.find((one) => one.per_second === per_second && one.target === `${store}, ${NODES[0]}`);
      const lost = row?.rounds.reduce((sum, round) => sum + round.lost, 0) ?? 0;
      const what = `accept to start at ${per_second}/s, ${share}, ${store}`;
      const measured =
        row === undefined ? { missing: 'left out' } : middle(row.rounds.map(({ started }) => started[share]));
      const goal = goalOf(what, { most: most_ms }, 'ms', measured);
      return lost === 0 ? goal : { ...goal, measured: `${goal.measured}, ${lost} jobs lost`, reached: false };
    }),
  );
}
