import type { Store } from '@flotilla/core';
import { describe, expect, test } from 'vitest';
import { failureKind } from '../../packages/control/src/store/failure.ts';
import { accountsSuite } from '../conformance/accounts.suite.ts';
import { attachedSuite } from '../conformance/attached.suite.ts';
import { listingsSuite } from '../conformance/listings.suite.ts';
import type { Beneath } from '../conformance/beneath.ts';
import { detachedAccountsSuite } from '../conformance/detached-accounts.suite.ts';
import { detachedSuite } from '../conformance/detached.suite.ts';
import { aDetachedJob, aFinish, claim, inventoried } from '../conformance/detached-rows.ts';
import { discoverySuite } from '../conformance/discovery.suite.ts';
import { nodesSuite } from '../conformance/nodes.suite.ts';
import { enrolNodes, T0 } from '../conformance/rows.ts';
import { sharedLimitsSuite } from '../conformance/shared-limits.suite.ts';
import { createDatabase, type Reach } from './store/database.ts';
import { answerLost, storeAway } from './store/failure.ts';

/** What the `Store` port promises, asked of the simulation's as of the real engines (tests/conformance/store.test.ts). */
describe('the store of the simulation', () => {
  let ahead_ms = 0;
  const database = createDatabase({ now_ms: () => Date.now() + ahead_ms });
  const { tables } = database;
  const beneath: Beneath = {
    contents: async () => ({
      jobs: [...database.jobs()],
      attempts: [...database.jobs()].map(({ id }) => database.attemptsOf(id)),
      usage: [...tables.usage.values()],
    }),
    attemptsOf: async (job) => database.attemptsOf(job).length,
    discoveriesOf: async (node) =>
      [...tables.discoveries.values()].filter((discovery) => discovery.node === node).length,
    sweptUsage: async (key) =>
      [...(tables.swept_usage.get(key) ?? [])].map(([day, tokens]) => ({ day, tokens })),
    sharesOf: async (key) =>
      Object.fromEntries(
        [...tables.allowances.values()]
          .filter((row) => row.key === key)
          .map(({ kind, shares }) => [kind, shares]),
      ),
    clockMoves: async () => void (ahead_ms += 10),
  };
  const store = database.connect(async (_call, commit) => commit());
  const subject = { store, beneath };

  accountsSuite(subject);
  nodesSuite(subject);
  attachedSuite(subject);
  detachedSuite(subject);
  detachedAccountsSuite(subject);
  discoverySuite(subject);
  sharedLimitsSuite(subject);
  listingsSuite(subject);
});

describe('a process that reaches the store of the simulation', () => {
  const job = aDetachedJob();

  /** As many processes as there are ways to reach it, on one database. */
  function connected(...reaches: Reach[]) {
    const database = createDatabase({ now_ms: () => T0 });
    return { database, stores: [direct, ...reaches].map((reach) => database.connect(reach)) };
  }
  const direct: Reach = async (_call, commit) => commit();

  test('hears `unavailable` where its call did not arrive, and where only the answer is lost', async () => {
    const { stores } = connected(
      () => Promise.reject(storeAway()),
      (_call, commit) => {
        commit();
        return Promise.reject(answerLost());
      },
    );
    const [store, away, deaf] = stores as [Store, Store, Store];
    for (const [failing, found] of [
      [away, undefined],
      [deaf, { id: job.id, state: 'queued' }],
    ] as const) {
      const failure = await failing.acceptJobs([job]).catch((error: unknown) => error);
      expect(failure).toMatchObject({ code: 'unavailable' });
      expect(failureKind(failure)).toBe('transient');
      expect((await store.findJob(job.id)) ?? undefined).toEqual(found && expect.objectContaining(found));
    }
    expect(await store.acceptJobs([job])).toEqual([{ accepted: job.id }]);
  });

  test('has sent what it said when it called, and shares nothing with others', async () => {
    let arrive = () => {};
    const { stores } = connected(async (_call, commit) => {
      await new Promise<void>((resolve) => (arrive = resolve));
      return commit();
    });
    const [store, slow] = stores as [Store, Store];
    const mine = aDetachedJob({ metadata: { project: 'x' } });
    const accepting = slow.acceptJobs([mine]);
    mine.metadata['project'] = 'y';
    arrive();
    await accepting;
    const found = await store.findDetached(mine.id);
    expect(found?.metadata).toEqual({ project: 'x' });
    found!.metadata['project'] = 'z';
    expect((await store.findDetached(mine.id))?.metadata).toEqual({ project: 'x' });
  });

  test('is refused a number that is no 64-bit integer, and nothing of its batch is written', async () => {
    const { stores, database } = connected();
    const [store] = stores as [Store];
    const failure = await store
      .acceptJobs([aDetachedJob(), aDetachedJob({ order_key: 0.5 })])
      .catch((error: unknown) => error);
    expect(failure).toMatchObject({ code: '22P02' });
    expect(failureKind(failure)).toBe('data');
    expect([...database.jobs()]).toEqual([]);
  });

  test('leaves each change of a job with its time and fence, a second end too', async () => {
    const { stores, database } = connected();
    const [store] = stores as [Store];
    await store.acceptJobs([job]);
    const [claimed] = await claim(store, job.lane, 1, 'node_a', 3);
    await store.startJobs([claimed!]);
    await store.keepJobs('node_a', 4, 'rep_b', [inventoried(claimed!)]);
    await store.finishJobs([aFinish(claimed!), aFinish({ ...claimed!, epoch: 4 })]);
    await store.cancelJob(job.id, 'too late');
    const moves = database.transitions.map(({ from, to, attempt, node, epoch }) =>
      [from, to, attempt, node, epoch].join(' '),
    );
    expect(moves).toEqual([
      ' queued 0  ',
      'queued leased 1 node_a 3',
      'leased running 1 node_a 3',
      'running running 1 node_a 4',
      'running succeeded 1 node_a 4',
    ]);
    expect(database.transitions[0]).toMatchObject({ at_ms: T0, job: job.id, attached: false });
    expect(database.job(job.id)).toMatchObject({ state: 'succeeded', accepted_attempt: 1, epoch: 4 });
    expect(database.attemptsOf(job.id)).toMatchObject([{ attempt: 1, outcome: 'succeeded' }]);
    expect(database.usageOf(job.id)).toMatchObject({ job: job.id, attempts: 1 });
  });

  test('finds at its nodes what the last replica wrote', async () => {
    const { stores, database } = connected();
    const [store] = stores as [Store];
    const [id] = (await enrolNodes(store, 1)) as [string];
    await store.takeEpochs('rep_a', [id]);
    await store.saveNodeStates([{ id, epoch: 1, state: 'online', close_reason: null, at: T0 }]);
    expect([...database.nodes()]).toMatchObject([{ id, epoch: 1, state: 'online', replica: 'rep_a' }]);
  });

  test('is told which call the simulation has no answer to', async () => {
    const [store] = connected().stores as [Store];
    expect(() => store.listAudit({}, { limit: 1 })).toThrow(/no listAudit: write it/);
  });
});
