import { median } from '../histogram.ts';
import { missing, type Queue, QUEUES, type Work } from '../queues.ts';
import { figure } from '../figure.ts';
import { type Goal, goalOf, type Report, spread } from '../report.ts';
import { interleave, middle, ratio } from '../rounds.ts';
import type { Scenario, Stage } from '../scenario.ts';

/** Whole lives of detached jobs a second: sent, committed, claimed, started, done, the result committed. */
interface Way {
  name: 'single' | 'batch';
  title: string;
  work: Omit<Work, 'jobs'>;
  jobs: number;
}

const WAYS: Way[] = [
  {
    name: 'single',
    title: 'Each job by itself, 64 at a time',
    work: { batch: 1, senders: 64 },
    jobs: 10_000,
  },
  {
    name: 'batch',
    title: 'In batches of 1,000, 4 at a time',
    work: { batch: 1000, senders: 4 },
    jobs: 40_000,
  },
];
const QUICK_DIVISOR = 5;
/** Of the jobs of a round, that are done before the first of them. */
const WARM_DIVISOR = 2;

interface Result {
  way: Way['name'];
  queue: string;
  /** Jobs a second, round by round. */
  rounds: number[];
}

export const lifecycles: Scenario = {
  name: 'lifecycles',
  about: 'lives of jobs a second, single and in batches, beside three queues',
  async run(stage) {
    const left_out: string[] = [];
    const queues: Queue[] = [];
    try {
      for (const [name, { start }] of Object.entries(QUEUES)) {
        const why = missing(name, stage.place);
        stage.say(why === undefined ? `Starting ${name}.` : `${name} is left out: ${why}.`);
        if (why === undefined) queues.push(await start(stage.place));
        else left_out.push(`${name} was left out (${why}).`);
      }
      const results: Result[] = [];
      for (const way of WAYS) {
        const jobs = stage.quick ? way.jobs / QUICK_DIVISOR : way.jobs;
        stage.say(way.title);
        for (const queue of queues) await queue.run({ ...way.work, jobs: jobs / WARM_DIVISOR });
        const found = await interleave(queues, stage.rounds, (queue) => queue.run({ ...way.work, jobs }));
        for (const [queue, rounds] of found) results.push({ way: way.name, queue: queue.name, rounds });
      }
      return reportOf(results, left_out, stage);
    } finally {
      for (const queue of queues) await queue.stop();
    }
  },
};

function reportOf(results: Result[], left_out: string[], stage: Stage): Report {
  return {
    name: 'lifecycles',
    title: 'Lives of jobs',
    about:
      'Jobs that do nothing, from the first sending until the end of the last one is committed. Flotilla is sent them over ' +
      'HTTP by the bench’s generator, with a key that has limits; they are done by a node that does nothing (a process of the ' +
      'bench on a real link), or by the real daemon, with its journal, and the instant backend. pg-boss, graphile-worker and ' +
      'BullMQ are called in the process that also does the work: no HTTP, no keys, no limits, no usage, no second process. ' +
      'PostgreSQL is the same server for all, with its own settings of fsync and synchronous_commit; Redis appends and syncs before ' +
      'each answer (appendfsync always). Each is set up as its documentation says for throughput (bench/peers/). All share the ' +
      `machine and take turns in each of ${stage.rounds} rounds, after half a round that is not counted; ratios are of pairs of a round. ${left_out.join(' ')}`,
    goals: goalsOf(results),
    tables: WAYS.map(({ name, title }) => {
      const rows = results.filter(({ way }) => way === name);
      const ours = rows.find(({ queue }) => queue === 'Flotilla, PostgreSQL');
      return {
        title,
        columns: ['', 'jobs a second', 'lowest', 'highest', 'Flotilla on PostgreSQL to it'],
        rows: rows.map(({ queue, rounds }) => {
          const { median: middling, low, high } = middle(rounds);
          const to =
            ours === undefined || ours.queue === queue ? '–' : spread(ratio(ours.rounds, rounds), ' ×');
          return [queue, figure(middling), figure(low), figure(high), to];
        }),
      };
    }),
    plots: [
      {
        name: 'rates',
        title: 'Jobs a second',
        unit: '/s',
        groups: WAYS.map(({ name, title }) => ({
          label: title,
          bars: results
            .filter(({ way }) => way === name)
            .map(({ queue, rounds }) => ({ name: queue, value: median(rounds) })),
        })),
      },
    ],
    data: results,
  };
}

function goalsOf(results: Result[]): Goal[] {
  const roundsOf = (way: Way['name'], queue: string) =>
    results.find((one) => one.way === way && one.queue === queue)?.rounds;
  const atLeast = (what: string, way: Way['name'], queue: string, least: number) => {
    const rounds = roundsOf(way, queue);
    return goalOf(what, { least }, 'jobs/s', rounds === undefined ? { missing: 'left out' } : middle(rounds));
  };
  const ahead = (way: Way['name'], peer: string) => {
    const [ours, theirs] = [roundsOf(way, 'Flotilla, PostgreSQL'), roundsOf(way, peer)];
    const both = ours !== undefined && theirs !== undefined;
    const measured = both ? ratio(ours, theirs) : { missing: 'one of the two was left out' };
    return goalOf(`${way}, to ${peer}`, { least: 1 }, '×', measured);
  };
  const peers = Object.keys(QUEUES).filter((name) => !name.startsWith('Flotilla'));
  return [
    atLeast('single, PostgreSQL', 'single', 'Flotilla, PostgreSQL', 4000),
    atLeast('batch, PostgreSQL', 'batch', 'Flotilla, PostgreSQL', 20_000),
    atLeast('single, PGlite', 'single', 'Flotilla, PGlite', 3000),
    ...WAYS.flatMap(({ name }) => peers.map((peer) => ahead(name, peer))),
  ];
}
