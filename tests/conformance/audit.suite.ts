import type { Act, AuditRecord } from '@flotilla/core';
import { FlotillaError } from '@flotilla/protocol';
import { describe, expect, test } from 'vitest';
import { aKey, anEnrolment, aToken, newId, T0 } from './rows.ts';
import { insertKey } from '../../packages/control/src/store/keys.ts';
import type { EngineSubject } from './store.suite.ts';

export function anAct(over: Partial<AuditRecord> = {}, keep_refusals = true): Act {
  return {
    record: {
      id: newId('audit'),
      at: T0,
      action: 'key.create',
      outcome: 'succeeded',
      key: newId('key'),
      key_name: 'admin',
      address: '203.0.113.7',
      target: null,
      change: { name: 'laptop' },
      request_id: 'req_1',
      ...over,
    },
    keep_refusals,
  };
}

export function auditSuite(subject: EngineSubject): void {
  const rowOf = async ({ record }: Act) =>
    (
      await subject.store.listAudit({ ...(record.key !== null && { key: record.key }) }, { limit: 500 })
    ).rows.find(({ id }) => id === record.id);
  const refusal = new FlotillaError('not_found', 'There is none.');

  describe('audit', () => {
    test('an act has its row with the change itself, and learns from it what it made', async () => {
      const act = anAct();
      const key = aKey();
      const seen = await subject.store.act(act, async () => {
        await subject.store.insertKey(key);
        return rowOf(act);
      });
      expect(seen).toEqual({ ...act.record, target: key.id });
      expect(await rowOf(act)).toEqual(seen);
    });

    test('a change that is rolled back leaves no row that says it was made', async () => {
      const act = anAct({ target: 'node_x' });
      const failure = new Error('The process has no luck.');
      const failing = subject.store.act(act, () =>
        subject.sql.transaction(async (tx) => {
          await insertKey(tx, aKey());
          throw failure;
        }),
      );
      await expect(failing).rejects.toBe(failure);
      expect(await rowOf(act)).toBeUndefined();
    });

    test('an act that changes nothing in the store has its row before it is answered', async () => {
      const act = anAct({ action: 'job.cancel', target: newId('job') });
      expect(await subject.store.act(act, () => Promise.resolve('done'))).toBe('done');
      expect(await rowOf(act)).toEqual(act.record);
    });

    test('a refusal is kept with its code where the act says so, and a refusal after the change changes nothing', async () => {
      const [kept, dropped, late] = [anAct(), anAct({}, false), anAct()];
      const refuse = () => Promise.reject(refusal);
      await expect(subject.store.act(kept, refuse)).rejects.toBe(refusal);
      await expect(subject.store.act(dropped, refuse)).rejects.toBe(refusal);
      await expect(subject.store.act(late, () => subject.store.insertKey(aKey()).then(refuse))).rejects.toBe(
        refusal,
      );
      expect((await rowOf(kept))?.outcome).toBe('not_found');
      expect(await rowOf(dropped)).toBeUndefined();
      expect((await rowOf(late))?.outcome).toBe('succeeded');
    });

    test('acts at the same time each have their own row', async () => {
      const acts = Array.from({ length: 20 }, () => ({ act: anAct(), key: aKey() }));
      await Promise.all(
        acts.map(({ act, key }) => subject.store.act(act, () => subject.store.insertKey(key))),
      );
      const targets = await Promise.all(acts.map(async ({ act }) => (await rowOf(act))?.target));
      expect(targets).toEqual(acts.map(({ key }) => key.id));
    });

    test('an act of two changes has one row; outside of an act there is none', async () => {
      const act = anAct();
      await subject.store.act(act, async () => {
        await subject.store.insertKey(aKey());
        await subject.store.insertToken(aToken());
      });
      const { key } = act.record;
      expect((await subject.store.listAudit({ key: key! }, { limit: 5 })).rows).toHaveLength(1);
      const [before] = await subject.sql.query<{ count: number }>('select count(*) as count from audit');
      await subject.store.insertKey(aKey());
      expect(await subject.sql.query('select count(*) as count from audit')).toEqual([before]);
    });

    test('an enrolment tells which token it used, and never the token', async () => {
      const token = aToken();
      await subject.store.insertToken(token);
      const enrolment = anEnrolment(token.hash);
      const key = newId('key'); // only to find the row by
      const act = anAct({ action: 'node.enrol', key, change: { token: '[hidden]', name: 'box' } }, false);
      await subject.store.act(act, () => subject.store.enrolNode(enrolment));
      expect(await rowOf(act)).toMatchObject({
        target: enrolment.node,
        change: { token: token.id, name: 'box' },
      });
    });

    test('the list is by key, act, target and time, newest first, page by page', async () => {
      const key = newId('key');
      const at = (n: number) => T0 + 1000 * n;
      const acts = [1, 2, 3].map((n) =>
        anAct({ id: newId('audit', at(n)), at: at(n), key, action: `key.act${n}`, target: `t${n}` }),
      );
      for (const act of acts) await subject.store.act(act, () => Promise.resolve());
      const ids = async (filter: Parameters<EngineSubject['store']['listAudit']>[0]) =>
        (await subject.store.listAudit({ key, ...filter }, { limit: 9 })).rows.map(({ target }) => target);
      expect(await ids({})).toEqual(['t3', 't2', 't1']);
      expect(await ids({ since: at(2) })).toEqual(['t3', 't2']);
      expect(await ids({ until: at(2) })).toEqual(['t1']);
      expect(await ids({ action: 'key.act2' })).toEqual(['t2']);
      expect(await ids({ target: 't1' })).toEqual(['t1']);
      const first = await subject.store.listAudit({ key }, { limit: 2 });
      const second = await subject.store.listAudit({ key }, { limit: 2, after: first.next_after! });
      expect([...first.rows, ...second.rows].map(({ target }) => target)).toEqual(['t3', 't2', 't1']);
      expect(second.next_after).toBeNull();
    });

    test('rows go when they have outlived their time', async () => {
      const year = 365 * 86_400_000;
      const old = anAct({ id: newId('audit', T0 - 2 * year), at: T0 - 2 * year });
      const young = anAct();
      for (const act of [old, young]) await subject.store.act(act, () => Promise.resolve());
      const limits = { jobs_ms: 9 * year, usage_ms: 9 * year, audit_ms: year, batch: 100 };
      expect(await subject.store.sweep(limits, T0)).toMatchObject({ audit: 1 });
      expect([await rowOf(old), (await rowOf(young))?.id]).toEqual([undefined, young.record.id]);
    });
  });
}
