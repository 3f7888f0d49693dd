import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type Fence,
  type JobEffect,
  type JobEvent,
  type JobKernel,
  type JobPolicy,
  isOpen,
  newJob,
  refence,
  stepJob,
} from './job.ts';
import { isTerminal } from '@flotilla/protocol';

const ATTACHED: JobPolicy = {
  attached: true,
  on_node_loss: 'requeue',
  max_attempts: 3,
  queue_timeout_ms: 60_000,
  run_timeout_ms: 600_000,
};
const DETACHED: JobPolicy = { ...ATTACHED, attached: false };
const fence = (attempt: number, node = 'a', epoch = 1): Fence => ({ attempt, node, epoch });

function run(policy: JobPolicy, events: JobEvent[], now = 0): { job: JobKernel; effects: JobEffect[] } {
  const effects: JobEffect[] = [];
  let job = newJob(policy, now);
  for (const event of events) {
    const step = stepJob(job, event, now);
    job = step.job;
    effects.push(...step.effects);
  }
  return { job, effects };
}
const offer = (node = 'a', epoch = 1): JobEvent => ({ type: 'offer', node, epoch });
const started = (attempt: number): JobEvent => ({ type: 'started', fence: fence(attempt) });
const completed = (attempt: number, digest = 'd'): JobEvent => ({
  type: 'completed',
  fence: fence(attempt),
  digest,
});
const failed = (attempt: number, retryable = true): JobEvent => ({
  type: 'failed',
  fence: fence(attempt),
  code: 'backend_error',
  message: 'm',
  retryable,
  retry_delay_ms: 0,
});
const answers = (effects: JobEffect[]) =>
  effects.flatMap((effect) => (effect.type === 'answer' ? [effect.outcome] : []));

describe('a job', () => {
  it('runs from offer to success', () => {
    const { job, effects } = run(ATTACHED, [offer(), started(1), completed(1)]);
    expect(job.state).toBe('succeeded');
    expect(answers(effects)).toEqual(['accepted']);
  });

  it('has met the queue deadline once a node has accepted it, and has a new one when that node lets go', () => {
    const { job } = run(ATTACHED, [offer(), { type: 'accepted', fence: fence(1) }]);
    expect(job.deadline_ms).toBe(600_000);
    expect(stepJob(job, { type: 'deadline' }, 600_000).job.state).toBe('timed_out');
    const { job: again } = stepJob(job, { type: 'released', fence: fence(1), retry_delay_ms: 0 }, 90_000);
    expect([again.state, again.deadline_ms]).toEqual(['queued', 150_000]);
    // Its run is counted from the acceptance on.
    expect(stepJob(job, started(1), 590_000).job.deadline_ms).toBe(600_000);
  });

  it('ends by its queue deadline where node after node accepts it and lets it go unstarted', () => {
    let job = newJob(ATTACHED, 0);
    let now = 0;
    for (let attempt = 1; isOpen(job) && attempt < 100; attempt++) {
      job = stepJob(job, offer(), now).job;
      job = stepJob(job, { type: 'accepted', fence: fence(attempt) }, now).job;
      now += 30_000;
      job = stepJob(job, { type: 'released', fence: fence(attempt), retry_delay_ms: 0 }, now).job;
      job = stepJob(job, { type: 'deadline' }, now).job;
    }
    expect(job.state).toBe('timed_out');
    expect(now).toBeLessThanOrEqual(120_000);
  });

  it('answers the same result again as duplicate and another one as conflict', () => {
    const { effects } = run(ATTACHED, [
      offer(),
      started(1),
      completed(1),
      completed(1),
      completed(1, 'other'),
    ]);
    expect(answers(effects)).toEqual(['accepted', 'duplicate', 'conflict']);
  });

  it('refuses a late result from attempt 1 after attempt 2 began', () => {
    const { job, effects } = run(ATTACHED, [
      offer(),
      { type: 'withdraw', fence: fence(1) },
      offer(),
      completed(1),
    ]);
    expect(answers(effects)).toEqual(['stale']);
    expect(job).toMatchObject({ state: 'leased', attempt: 2 });
  });

  it('refuses a result from an older epoch of the same node', () => {
    const { effects } = run(ATTACHED, [
      offer('a', 2),
      { type: 'completed', fence: fence(1, 'a', 1), digest: 'd' },
    ]);
    expect(answers(effects)).toEqual(['stale']);
  });

  it('keeps its attempt over a reconnect, under the new epoch only', () => {
    const { job } = run(ATTACHED, [offer(), started(1)]);
    const kept = refence(job, 1, 'a', 2);
    expect(answers([...stepJob(kept, completed(1), 0).effects])).toEqual(['stale']);
    expect(stepJob(kept, { type: 'completed', fence: fence(1, 'a', 2), digest: 'd' }, 0).job.state).toBe(
      'succeeded',
    );
  });

  it('moves attached work at once when an offer is not answered, detached work only at the lease end', () => {
    const withdraw: JobEvent = { type: 'withdraw', fence: fence(1) };
    expect(run(ATTACHED, [offer(), withdraw]).job.state).toBe('queued');
    expect(run(DETACHED, [offer(), withdraw]).job.state).toBe('leased');
    const lost: JobEvent = { type: 'node_lost', fence: fence(1), retry_delay_ms: 0 };
    expect(run(DETACHED, [offer(), withdraw, lost]).job.state).toBe('queued');
  });

  it('counts only attempts that started, and gives up after the third', () => {
    const never_started: JobEvent = { type: 'node_lost', fence: fence(1), retry_delay_ms: 0 };
    const { job } = run(ATTACHED, [offer(), never_started]);
    expect(job).toMatchObject({ state: 'queued', failures: 0 });
    const three = run(ATTACHED, [offer(), failed(1), offer(), failed(2), offer(), failed(3)]);
    expect(three.job.state).toBe('failed');
    expect(three.effects).toContainEqual(
      expect.objectContaining({ type: 'finished', code: 'attempts_exhausted' }),
    );
  });

  it('fails rather than repeat itself once the client has a byte', () => {
    const { job, effects } = run(ATTACHED, [
      offer(),
      started(1),
      { type: 'handed', fence: fence(1) },
      failed(1),
    ]);
    expect(job.state).toBe('failed');
    expect(effects).toContainEqual(expect.objectContaining({ type: 'finished', code: 'backend_error' }));
  });

  it('tells its node when it is cancelled, and ends once', () => {
    const { effects } = run(ATTACHED, [
      offer(),
      started(1),
      { type: 'cancel', message: 'c' },
      { type: 'cancel', message: 'c' },
    ]);
    expect(effects.filter((effect) => effect.type === 'tell')).toHaveLength(1);
    expect(effects.filter((effect) => effect.type === 'finished')).toHaveLength(1);
  });

  it('keeps an agent that waits for its origin running while contact is lost', () => {
    const policy: JobPolicy = { ...DETACHED, on_node_loss: 'wait_for_origin', run_timeout_ms: null };
    const { job } = run(policy, [
      offer(),
      started(1),
      { type: 'node_lost', fence: fence(1), retry_delay_ms: 0 },
    ]);
    expect(job).toMatchObject({ state: 'running', contact: 'lost' });
  });
});

const anyFence = fc.record({
  attempt: fc.integer({ min: 1, max: 5 }),
  node: fc.constantFrom('a', 'b'),
  epoch: fc.integer({ min: 1, max: 2 }),
});
const anyEvent: fc.Arbitrary<JobEvent> = fc.oneof(
  fc.record({
    type: fc.constant('offer' as const),
    node: fc.constantFrom('a', 'b'),
    epoch: fc.integer({ min: 1, max: 2 }),
  }),
  fc.record({
    type: fc.constantFrom('accepted' as const, 'started' as const, 'withdraw' as const, 'handed' as const),
    fence: anyFence,
  }),
  fc.record({
    type: fc.constant('rejected' as const),
    fence: anyFence,
    reason: fc.constant('r'),
    retry_delay_ms: fc.nat(50),
  }),
  fc.record({
    type: fc.constantFrom('released' as const, 'node_lost' as const),
    fence: anyFence,
    retry_delay_ms: fc.nat(50),
  }),
  fc.record({ type: fc.constant('completed' as const), fence: anyFence, digest: fc.constantFrom('x', 'y') }),
  fc.record({
    type: fc.constant('failed' as const),
    fence: anyFence,
    code: fc.constant('backend_error' as const),
    message: fc.constant('m'),
    retryable: fc.boolean(),
    retry_delay_ms: fc.nat(50),
  }),
  fc.record({ type: fc.constant('cancel' as const), message: fc.constant('c') }),
  fc.record({ type: fc.constant('deadline' as const) }),
  fc.record({ type: fc.constant('no_capacity' as const), message: fc.constant('n') }),
);

describe('whatever happens to a job', () => {
  const policies = fc.record({
    attached: fc.boolean(),
    on_node_loss: fc.constantFrom('requeue' as const, 'fail' as const, 'wait_for_origin' as const),
    max_attempts: fc.integer({ min: 1, max: 3 }),
    queue_timeout_ms: fc.integer({ min: 1, max: 2000 }),
    run_timeout_ms: fc.option(fc.integer({ min: 1, max: 2000 })),
  });
  const steps = fc.array(fc.tuple(anyEvent, fc.nat(100)), { maxLength: 80 });

  it('at most one result is accepted, it ends at most once, and a stale attempt changes nothing', () => {
    fc.assert(
      fc.property(policies, steps, (policy, steps) => {
        let job = newJob(policy, 0);
        let now = 0;
        let finished = 0;
        let succeeded = 0;
        for (const [event, wait] of steps) {
          now += wait;
          const before = job;
          const step = stepJob(job, event, now);
          job = step.job;
          for (const effect of step.effects) {
            if (effect.type === 'finished') finished++;
            if (effect.type === 'finished' && effect.state === 'succeeded') succeeded++;
          }
          const { current } = before;
          const is_current =
            'fence' in event &&
            current !== null &&
            current.attempt === event.fence.attempt &&
            current.node === event.fence.node &&
            current.epoch === event.fence.epoch;
          if ('fence' in event && !is_current) expect(job).toBe(before);
          if (isTerminal(before.state)) expect(job.state).toBe(before.state);
          expect(finished).toBe(isTerminal(job.state) ? 1 : 0);
          expect(succeeded).toBeLessThanOrEqual(1);
          expect(job.current === null).toBe(job.state === 'queued' || isTerminal(job.state));
          expect(job.attempt).toBeGreaterThanOrEqual(before.attempt);
        }
      }),
      { numRuns: 2000 },
    );
  });

  it('every attempt that is offered has one end in the story, and every job with deadlines ends', () => {
    fc.assert(
      fc.property(policies, steps, (policy, steps) => {
        let job = newJob(policy, 0);
        let now = 0;
        let ended = 0;
        const feed = (event: JobEvent) => {
          const step = stepJob(job, event, now);
          job = step.job;
          ended += step.effects.filter((effect) => effect.type === 'attempt_ended').length;
        };
        for (const [event, wait] of steps) {
          now += wait;
          feed(event);
        }
        expect(ended).toBe(job.attempt - (job.current === null ? 0 : 1));
        if (job.deadline_ms !== null) {
          now = Math.max(now, job.deadline_ms);
          feed({ type: 'deadline' });
          expect(isOpen(job)).toBe(false);
        } else if (isOpen(job)) {
          feed({ type: 'cancel', message: 'operator' });
        }
        expect(ended).toBe(job.attempt);
      }),
      { numRuns: 2000 },
    );
  });
});
