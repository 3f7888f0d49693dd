import type { Socket } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { processUse } from '../hardware.ts';
import { Samples, type Spread, spreadOf } from '../histogram.ts';
import { dial, requestBytes } from '../load.ts';
import { sharedNow_ms } from '../orders.ts';
import { figure } from '../figure.ts';
import { type Goal, goalOf, type Report, SPREAD_COLUMNS, spreadCells, type Table } from '../report.ts';
import { interleave, middle } from '../rounds.ts';
import type { Scenario, Stage } from '../scenario.ts';
import { available, MODEL, type Target, TARGETS } from '../targets.ts';

/** Many streams at once, each as slow as a person reads: what the way adds to the gaps between their events. */
const CELLS = [100, 250, 500, 1000];
const QUICK_CELLS = [20, 100];
const EVENTS_PER_SECOND = 50;
/** So many that the most streams have a slot each. */
const DAEMONS = 2;
const WAYS = ['direct', 'two-hop floor', 'Flotilla node, PostgreSQL', 'Flotilla node, PGlite'];
/** Of each stream: they all begin at once, which is another scenario's. */
const SKIPPED = EVENTS_PER_SECOND;
const RAMP_MS = 1000;

interface Round {
  streams: number;
  /** Without every event and its `[DONE]`. */
  lost: number;
  events: number;
  /** What came, of what the backend would send if the machine let it. */
  share: number;
  /** Between two events of a stream, beyond what there was between their sendings. */
  added: Spread;
  /** From an event's sending. */
  delay: Spread;
  cpu_share: number | null;
}

interface Row {
  streams: number;
  target: string;
  rounds: Round[];
}

export const slowStreams: Scenario = {
  name: 'slow-streams',
  about: `up to ${CELLS.at(-1)!.toLocaleString('en')} streams of ${EVENTS_PER_SECOND} events a second: gaps between events`,
  async run(stage) {
    const { names, missing } = available(stage.place);
    const targets: Target[] = [];
    try {
      for (const name of WAYS.filter((way) => names.includes(way))) {
        stage.say(`Starting ${name}.`);
        targets.push(await TARGETS[name]!.start(stage.place, DAEMONS));
      }
      const rows: Row[] = [];
      for (const streams of stage.quick ? QUICK_CELLS : CELLS) {
        stage.say(`${streams} streams`);
        // A second is passed over, so that there is more than one.
        const for_ms = 1000 + stage.for_ms * (stage.quick ? 1 : 3);
        const found = await interleave(targets, stage.rounds, (target) => measure(target, streams, for_ms));
        rows.push(...[...found].map(([{ name }, rounds]) => ({ streams, target: name, rounds })));
      }
      return reportOf(
        rows,
        WAYS.filter((way) => way in missing).map((way) => `${way} was left out (${missing[way]}).`),
        stage,
      );
    } finally {
      for (const target of targets.reverse()) await target.stop();
    }
  },
};

async function measure(target: Target, streams: number, for_ms: number): Promise<Round> {
  const events = Math.round((for_ms * EVENTS_PER_SECOND) / 1000);
  const body = Buffer.from(
    JSON.stringify({
      model: MODEL,
      messages: [{ role: 'user', content: 'Hello' }],
      stream: true,
      events,
      events_per_second: EVENTS_PER_SECOND,
    }),
  );
  const request = requestBytes(target.url, target.headers, body);
  const sockets = await Promise.all(Array.from({ length: streams }, () => dial(target.url)));
  const before = target.pids.map(processUse);
  const began_ms = sharedNow_ms();
  const added = new Samples();
  const delay = new Samples();
  const read = await Promise.all(
    sockets.map(async (socket, n) => {
      await pause((n / streams) * RAMP_MS);
      return readStream(socket, request, for_ms * 3 + 10_000, added, delay);
    }),
  );
  const took_ms = sharedNow_ms() - began_ms;
  const after = target.pids.map(processUse);
  const known = target.pids.length > 0 && [...before, ...after].every((use) => use !== null);
  const cpu_s = known ? after.reduce((sum, use, at) => sum + use!.cpu_s - before[at]!.cpu_s, 0) : 0;
  const came = read.reduce((sum, one) => sum + one.events, 0);
  return {
    streams,
    lost: read.filter((one) => !one.done || one.events !== events).length,
    events: came,
    share: came / ((took_ms - RAMP_MS) / 1000) / (streams * EVENTS_PER_SECOND),
    added: spreadOf(added.values()),
    delay: spreadOf(delay.values()),
    cpu_share: known ? cpu_s / (took_ms / 1000) : null,
  };
}

const STAMP = Buffer.from('"at":"');
const DONE = Buffer.from('data: [DONE]');

/**
 * As cheap as it can be: looks for stamps in the bytes, whatever else is in them. A stamp that falls into two reads is put
 * together; nothing else is kept.
 */
function readStream(
  socket: Socket,
  request: Buffer,
  within_ms: number,
  added: Samples,
  delay: Samples,
): Promise<{ events: number; done: boolean }> {
  return new Promise((resolve) => {
    let events = 0;
    let done = false;
    let last_delay_ms = Number.NaN;
    let rest: Buffer = Buffer.alloc(0);
    const timer = setTimeout(() => socket.destroy(), within_ms);
    socket.on('data', (chunk: Buffer) => {
      const now_ms = sharedNow_ms();
      const bytes = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
      let from = 0;
      for (;;) {
        const at = bytes.indexOf(STAMP, from);
        const end = at === -1 ? -1 : bytes.indexOf(0x22, at + STAMP.length);
        if (end === -1) break;
        const delay_ms = now_ms - Number(bytes.toString('latin1', at + STAMP.length, end));
        if (events++ >= SKIPPED) {
          delay.add(delay_ms);
          added.add(delay_ms - last_delay_ms);
        }
        last_delay_ms = delay_ms;
        from = end + 1;
      }
      done ||= bytes.includes(DONE, from);
      // No more than a stamp, or the end, of which the beginning is here.
      rest = Buffer.from(bytes.subarray(Math.max(from, bytes.length - 32)));
      if (done) socket.destroy();
    });
    socket.on('close', () => {
      clearTimeout(timer);
      resolve({ events, done });
    });
    socket.write(request);
  });
}

function reportOf(rows: Row[], left_out: string[], stage: Stage): Report {
  const cells = [...new Set(rows.map(({ streams }) => streams))];
  return {
    name: 'slow-streams',
    title: 'Many slow streams',
    about:
      `Streams of ${EVENTS_PER_SECOND} events a second, all at once. Each event carries the time at which the backend sent it; what ` +
      'the way added to a gap is the gap between two events of a stream less the one between their sendings, so it is below 0 as ' +
      'often as above. The first second of each stream is not counted. “Came” is how many events a second arrived, of those that ' +
      'the backend sends on an idle machine: below 100 % the machine, or the way, could not carry them. The backend (one process), ' +
      'the reader (one process) and the target share the processors; the row “direct” is what backend and reader can do without ' +
      `anything between them. Flotilla has ${DAEMONS} daemons, since one offers 512 slots at most. ${stage.rounds} rounds, interleaved; the figures are the medians of the rounds. ${left_out.join(' ')}`,
    goals: goalsOf(rows),
    tables: cells.map((streams) =>
      tableOf(
        rows.filter((row) => row.streams === streams),
        streams,
      ),
    ),
    plots: [
      {
        name: 'gaps',
        title: 'Added to the gaps between events, p99',
        unit: 'ms',
        groups: cells.map((streams) => ({
          label: `${streams} streams`,
          bars: rows
            .filter((row) => row.streams === streams)
            .map(({ target, rounds }) => ({
              name: target,
              value: middle(rounds.map(({ added }) => added.p99)).median,
            })),
        })),
      },
    ],
    data: rows,
  };
}

function tableOf(rows: Row[], streams: number): Table {
  return {
    title: `${streams} streams: added to the gaps between events`,
    columns: ['', ...SPREAD_COLUMNS, 'delay p50 ms', 'delay p99 ms', 'came', 'lost', 'CPU share of a core'],
    rows: rows.map(({ target, rounds }) => {
      const of = (value: (round: Round) => number) => middle(rounds.map(value)).median;
      return [
        target,
        ...spreadCells({
          count: 0,
          p50: of(({ added }) => added.p50),
          p90: of(({ added }) => added.p90),
          p99: of(({ added }) => added.p99),
          most: of(({ added }) => added.most),
        }),
        figure(of(({ delay }) => delay.p50)),
        figure(of(({ delay }) => delay.p99)),
        `${Math.round(of(({ share }) => share) * 100)} %`,
        String(rounds.reduce((sum, { lost }) => sum + lost, 0)),
        rounds[0]!.cpu_share === null ? '–' : figure(of(({ cpu_share }) => cpu_share!)),
      ];
    }),
  };
}

function goalsOf(rows: Row[]): Goal[] {
  const streams = CELLS.at(-1)!;
  const roundsOf = (target: string) =>
    rows.find((row) => row.target === target && row.streams === streams)?.rounds;
  const what = (of: string) => `${streams} streams of ${EVENTS_PER_SECOND} events a second, ${of}`;
  const floor = roundsOf('two-hop floor');
  return ['Flotilla node, PostgreSQL', 'Flotilla node, PGlite'].flatMap((target) => {
    const rounds = roundsOf(target);
    const missing = { missing: 'left out, or too few streams' };
    const p99 = rounds === undefined ? missing : middle(rounds.map(({ added }) => added.p99));
    const lost = rounds === undefined ? missing : rounds.reduce((sum, round) => sum + round.lost, 0);
    const goal = goalOf(what(`p99 added to a gap, ${target}`), { most: 10 }, 'ms', p99);
    const floors =
      floor === undefined
        ? ''
        : `; the floor ${figure(middle(floor.map(({ added }) => added.p99)).median)} ms`;
    return [
      { ...goal, measured: goal.measured + floors },
      goalOf(what(`lost, ${target}`), { most: 0 }, 'streams', lost),
    ];
  });
}
