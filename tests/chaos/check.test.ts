import { expect, test } from 'vitest';
import { DONE, chatAnswer, chatChunk } from '../support/scripted-backend.ts';
import { seededRandom } from '../support/seeded-random.ts';
import { sayingOf, streamOf } from './answers.ts';
import { type Promised, violationsOf } from './check.ts';
import { planFaults } from './faults.ts';
import type { Event, Seen } from './history.ts';

/** The checker of histories finds each promise broken where one is, and only there. */
const BOUNDS = { slots: 1, stuck_after_ms: 10_000 };
type Line = [at_ms: number, seen: Seen];

/** Job 0 is done in the run 1, and job 1 in the run 3, after its first node was killed; a client cancels job 2. */
const SOUND: readonly Line[] = [
  [0, { type: 'submitted', to: 'replica 1', from: 0, count: 3 }],
  [
    10,
    {
      type: 'acknowledged',
      by: 'replica 1',
      jobs: [
        [0, 'job_a'],
        [1, 'job_b'],
        [2, 'job_c'],
      ],
    },
  ],
  [20, { type: 'began', run: 1, node: 'node-1', work: 'job', number: 0 }],
  [30, { type: 'ended', run: 1, said: sayingOf(0, 1) }],
  [30, { type: 'began', run: 2, node: 'node-1', work: 'job', number: 1 }],
  [40, { type: 'read', by: 'replica 2', asked_ms: 35, id: 'job_b', state: 'running', said: null }],
  [
    50,
    { type: 'read', by: 'replica 2', asked_ms: 45, id: 'job_a', state: 'succeeded', said: sayingOf(0, 1) },
  ],
  [60, { type: 'cancel', id: 'job_c', done: true }],
  [1000, { type: 'fault', number: 0, name: 'kill -9 of a node', target: 'node 1', for_ms: 500 }],
  [1000, { type: 'exited', who: 'node-1', killed: true, code: null, output: '' }],
  [1001, { type: 'ended', run: 2, said: null }],
  [1500, { type: 'healed', number: 0, name: 'kill -9 of a node', target: 'node 1' }],
  [9000, { type: 'began', run: 3, node: 'node-2', work: 'job', number: 1 }],
  [9100, { type: 'ended', run: 3, said: sayingOf(1, 3) }],
  [9200, { type: 'began', run: 4, node: 'node-2', work: 'stream', number: 0 }],
  [9300, { type: 'ended', run: 4, said: sayingOf(0, 4) }],
  [9300, answered('stream', 0, streamOf(0, 4))],
  [9400, { type: 'began', run: 5, node: 'node-2', work: 'whole', number: 1 }],
  [9750, { type: 'ended', run: 5, said: sayingOf(1, 5) }],
  [9750, answered('whole', 1, chatAnswer(sayingOf(1, 5)))],
  [9600, { type: 'calm' }],
  [9650, { type: 'open', jobs: 1 }],
  [9700, { type: 'open', jobs: 0 }],
  [
    9700,
    {
      type: 'view',
      by: 'replica 1',
      ready: 'ready',
      nodes: [
        ['node-1', 'online'],
        ['node-2', 'online'],
      ],
    },
  ],
  [
    9800,
    {
      type: 'listed',
      by: 'replica 1',
      asked_ms: 9750,
      jobs: [
        ['job_a', 'succeeded'],
        ['job_b', 'succeeded'],
        ['job_c', 'cancelled'],
      ],
    },
  ],
  [
    9900,
    {
      type: 'stored',
      id: 'job_a',
      number: 0,
      state: 'succeeded',
      error: null,
      said: sayingOf(0, 1),
      succeeded: 1,
      usages: 1,
    },
  ],
  [
    9900,
    {
      type: 'stored',
      id: 'job_b',
      number: 1,
      state: 'succeeded',
      error: null,
      said: sayingOf(1, 3),
      succeeded: 1,
      usages: 1,
    },
  ],
  [
    9900,
    {
      type: 'stored',
      id: 'job_c',
      number: 2,
      state: 'cancelled',
      error: 'cancelled',
      said: null,
      succeeded: 0,
      usages: 1,
    },
  ],
  [9900, { type: 'recorded', work: 'stream', number: 0, succeeded: 1 }],
  [9900, { type: 'recorded', work: 'whole', number: 1, succeeded: 1 }],
];

function answered(
  work: 'stream' | 'whole',
  number: number,
  text: string,
  status = 200,
): Extract<Seen, { type: 'answered' }> {
  return { type: 'answered', by: 'replica 1', work, number, status, text, end: 'closed' };
}

const streamed = (text: string) => changed('answered', { work: 'stream' }, { text });
const refused = (text: string) => [...SOUND, [9550, answered('whole', 7, text, 503)] as Line];
const PIECE = chatChunk(`${sayingOf(0, 4)} 0 äzzzzzzzzzz`);
const ERROR =
  'data: {"error":{"message":"It is gone.","type":"server_error","code":"node_lost","param":null}}\n\n';
const whole = streamOf(0, 4);

const BROKEN: [what: string, promise: Promised, history: readonly Line[]][] = [
  ['a job that is not in the store', 'acknowledged jobs are kept', without('stored', { id: 'job_a' })],
  [
    'a job in the store that is nobody’s',
    'acknowledged jobs are kept',
    [
      ...SOUND,
      [
        9900,
        {
          type: 'stored',
          id: 'job_x',
          number: 9,
          state: 'cancelled',
          error: null,
          said: null,
          succeeded: 0,
          usages: 1,
        },
      ],
    ],
  ],
  [
    'a job that has two ids',
    'each job is accepted once',
    [...SOUND, [12, { type: 'acknowledged', by: 'replica 2', jobs: [[0, 'job_d']] }]],
  ],
  [
    'a job that has two results',
    'each job is accepted once',
    changed('stored', { id: 'job_a' }, { succeeded: 2 }),
  ],
  [
    'a job that has two usage rows',
    'each job is accepted once',
    changed('stored', { id: 'job_a' }, { usages: 2 }),
  ],
  [
    'a job that has no usage row',
    'each job is accepted once',
    changed('stored', { id: 'job_b' }, { usages: 0 }),
  ],
  [
    'a job that is open in the end',
    'each job ends',
    changed('stored', { id: 'job_b' }, { state: 'running', succeeded: 0, said: null }),
  ],
  ['a job that is open for long', 'each job ends', changed('open', { jobs: 0 }, {}, 30_000)],
  ['a job that is never settled', 'each job ends', without('open', { jobs: 0 })],
  [
    'a job that fails without a cause',
    'each job ends for a reason',
    changed('stored', { id: 'job_b' }, { state: 'failed', error: 'node_lost', said: null, succeeded: 0 }),
  ],
  [
    'a job that fails after three attempts that nobody saw',
    'each job ends for a reason',
    changed(
      'stored',
      { id: 'job_b' },
      { state: 'failed', error: 'attempts_exhausted', said: null, succeeded: 0 },
    ),
  ],
  ['a job that is cancelled by nobody', 'each job ends for a reason', without('cancel', {})],
  [
    'a job that is open again',
    'an end does not change',
    [
      ...SOUND,
      [80, { type: 'read', by: 'replica 1', asked_ms: 70, id: 'job_a', state: 'queued', said: null }],
    ],
  ],
  [
    'a job that has another result later',
    'an end does not change',
    [
      ...SOUND,
      [
        80,
        {
          type: 'read',
          by: 'replica 1',
          asked_ms: 70,
          id: 'job_a',
          state: 'succeeded',
          said: sayingOf(0, 9),
        },
      ],
    ],
  ],
  [
    'a job that is cancelled, and succeeds',
    'an end does not change',
    changed('stored', { id: 'job_c' }, { state: 'succeeded', succeeded: 1 }),
  ],
  [
    'a job that is listed otherwise',
    'an end does not change',
    changed('listed', {}, { jobs: [['job_a', 'failed']] }),
  ],
  [
    'a job that has a result of another job',
    'a result is what a backend has sent for that job',
    changed('stored', { id: 'job_b' }, { said: sayingOf(0, 1) }),
  ],
  [
    'a job that has a result that was cut off',
    'a result is what a backend has sent for that job',
    changed('stored', { id: 'job_b' }, { said: sayingOf(1, 2) }),
  ],
  [
    'a job that begins before it has ended elsewhere',
    'detached work is never on two nodes',
    changed('ended', { run: 2 }, {}, 9400),
  ],
  ['a job that never ends elsewhere', 'detached work is never on two nodes', without('ended', { run: 2 })],
  [
    'two requests on one slot',
    'a backend never has more than its slots',
    changed('ended', { run: 4 }, {}, 9800),
  ],
  ['a stream with a hole', 'a stream is whole, or says that it is not', streamed(whole.replace(PIECE, ''))],
  ['a stream with a piece twice', 'a stream is whole, or says that it is not', streamed(PIECE + whole)],
  ['a stream that ends after a piece', 'a stream is whole, or says that it is not', streamed(PIECE)],
  [
    'a stream with a hole before its error',
    'a stream is whole, or says that it is not',
    streamed(whole.slice(PIECE.length).replace(DONE, ERROR)),
  ],
  [
    'a stream with an error and [DONE]',
    'a stream is whole, or says that it is not',
    streamed(PIECE + ERROR + DONE),
  ],
  ['a stream of another request', 'a stream is whole, or says that it is not', streamed(streamOf(5, 4))],
  [
    'an answer that no backend sent whole',
    'an answer is whole, or an error',
    changed('answered', { work: 'whole' }, { text: chatAnswer(sayingOf(1, 4)) }),
  ],
  ['a refusal without a code', 'an answer is whole, or an error', refused('Bad Gateway')],
  [
    'a whole stream without a record',
    'no success without its record',
    without('recorded', { work: 'stream' }),
  ],
  [
    'a whole answer without a record',
    'no success without its record',
    without('recorded', { work: 'whole' }),
  ],
  [
    'an answer that is recorded twice',
    'no success without its record',
    changed('recorded', { work: 'whole' }, { succeeded: 2 }),
  ],
  ['a fault that does not heal', 'all heals', without('healed', {})],
  ['a replica that is degraded in the end', 'all heals', changed('view', {}, { ready: 'degraded' })],
  [
    'a node that is offline in the end',
    'all heals',
    changed(
      'view',
      {},
      {
        nodes: [
          ['node-1', 'offline'],
          ['node-2', 'online'],
        ],
      },
    ),
  ],
  ['a node that exits', 'no process ends by itself', changed('exited', {}, { killed: false, code: 1 })],
];

test('a history in which all promises are kept has no violation', () => {
  expect(judged(SOUND)).toEqual([]);
});

test.each(BROKEN)('finds %s (%s)', (_what, promise, history) => {
  expect(new Set(judged(history))).toContain(promise);
});

test('what may be is no violation', () => {
  const cut_stream = changed('answered', { work: 'stream' }, { text: `${PIECE}: wait\n\n${ERROR}` });
  expect(judged(cut_stream)).toEqual([]);
  expect(judged(changed('answered', { work: 'stream' }, { text: PIECE, end: 'broken' }))).toEqual([]);
  expect(judged(refused('{"error":{"code":"unavailable"}}'))).toEqual([]);
  // Asked before the end was seen elsewhere, answered after.
  expect(
    judged([
      ...SOUND,
      [80, { type: 'read', by: 'replica 1', asked_ms: 40, id: 'job_a', state: 'running', said: null }],
    ]),
  ).toEqual([]);
  // A node that is stopped holds its backend's connection until it runs again.
  const stopped = changed('fault', {}, { name: 'SIGSTOP of a node' });
  const held = stopped.map(([at_ms, seen]): Line => {
    if (seen.type === 'healed') return [9400, seen];
    return seen.type === 'ended' && seen.run === 2 ? [9500, seen] : [at_ms, seen];
  });
  expect(judged(held)).toEqual([]);
});

test('the same seed plans the same faults, of which none meets what another is still at', () => {
  const plan = (seed: number) => {
    const faults = planFaults(seededRandom(seed), { replicas: 3, nodes: 5, gap_ms: 500, most: 4 });
    return Array.from({ length: 500 }, () => faults.next().value);
  };
  expect(plan(4)).toEqual(plan(4));
  expect(plan(4)).not.toEqual(plan(5));
  for (const [place, { at_ms, target, fault, for_ms }] of plan(4).entries()) {
    expect(for_ms).toBeLessThanOrEqual(fault.for_ms[1]);
    const open = plan(4)
      .slice(0, place)
      .filter((one) => one.at_ms + one.for_ms > at_ms);
    expect(open.map((one) => one.target)).not.toContain(target);
    expect(open.length).toBeLessThan(4);
  }
});

function judged(history: readonly Line[]): Promised[] {
  const lines = history.toSorted(([a], [b]) => a - b);
  const events = lines.map(([at_ms, seen]): Event => ({ at_ms, ...seen }));
  return violationsOf(events, BOUNDS).map(({ promise }) => promise);
}

function is(seen: Seen, type: Seen['type'], like: object): boolean {
  return (
    seen.type === type &&
    Object.entries(like).every(([name, value]) => (seen as Record<string, unknown>)[name] === value)
  );
}

function without(type: Seen['type'], like: object): readonly Line[] {
  return SOUND.filter(([, seen]) => !is(seen, type, like));
}

function changed(type: Seen['type'], like: object, more: object, at_ms?: number): readonly Line[] {
  return SOUND.map(
    ([when_ms, seen]): Line =>
      is(seen, type, like) ? [at_ms ?? when_ms, { ...seen, ...more } as Seen] : [when_ms, seen],
  );
}
