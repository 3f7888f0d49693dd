import type { Finish, JobFence, ResultOutcome } from '@flotilla/core';
import { ManualClock } from '@flotilla/core/testing';
import { expect, test } from 'vitest';
import { openTransitions } from './transitions.ts';

const settled = () => new Promise<void>((done) => void setImmediate(done));
const fence = (id: string): JobFence => ({ id, attempt: 1, node: 'node_a', epoch: 1 });
const finish = (id: string): Finish => ({
  ...fence(id),
  state: 'succeeded',
  backend: 'b',
  outcome: 'succeeded',
  code: null,
  message: null,
  digest: 'd',
  error_code: null,
  error_message: null,
  result: '{}',
  usage: null,
  provisional: false,
});

/** A store that accepts all but the job `lost`. */
function setup() {
  const clock = new ManualClock();
  const started: string[][] = [];
  const finished: Finish[][] = [];
  const answer = ({ id }: JobFence): ResultOutcome => (id === 'lost' ? 'stale' : 'accepted');
  const transitions = openTransitions({
    clock,
    store: {
      startJobs: (batch) => (started.push(batch.map(({ id }) => id)), Promise.resolve(batch.map(answer))),
      requeueJobs: () => Promise.reject(new Error('nothing goes back here')),
      finishJobs: (batch) => (finished.push(batch), Promise.resolve(batch.map(answer))),
      ping: () => Promise.resolve(),
    },
    flushed() {},
  });
  const flush = async () => {
    clock.advance(1);
    await settled();
  };
  return { clock, transitions, started, finished, flush };
}

test('a start goes with the end of its attempt where both wait, and alone where the end is not there yet', async () => {
  const { clock, transitions, started, finished, flush } = setup();
  const start = transitions.add({ type: 'start', row: fence('short') });
  clock.advance(0);
  const others = [
    transitions.add({ type: 'start', row: fence('long') }),
    transitions.add({ type: 'finish', row: finish('short') }),
    // Of an older attempt.
    transitions.add({ type: 'start', row: { ...fence('short'), attempt: 0 } }),
  ];
  await flush();
  expect(await Promise.all([start, ...others])).toEqual(Array(4).fill('accepted'));
  expect(started).toEqual([['long', 'short']]);
  expect(finished.map((batch) => batch.map(({ id, started_ago_ms }) => [id, started_ago_ms]))).toEqual([
    [['short', 1]],
  ]);
  await transitions.close(0);
});

test('a start whose end was refused is stale', async () => {
  const { transitions, started, flush } = setup();
  const both = [
    transitions.add({ type: 'start', row: fence('lost') }),
    transitions.add({ type: 'finish', row: finish('lost') }),
  ];
  await flush();
  expect(await Promise.all(both)).toEqual(['stale', 'stale']);
  expect(started).toEqual([]);
  await transitions.close(0);
});
