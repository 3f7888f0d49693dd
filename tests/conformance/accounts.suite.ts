import { describe, expect, test } from 'vitest';
import { aKey, anEnrolment, aToken, newId, T0 } from './rows.ts';
import type { Subject } from './store.suite.ts';

export function accountsSuite(subject: Subject): void {
  const keyOf = async (id: string) => (await subject.store.loadKeys()).find((key) => key.id === id);

  describe('keys', () => {
    test('a key comes back as it was put in', async () => {
      const key = aKey({
        requests_per_minute: 2 ** 40,
        tokens_per_minute: 2 ** 41,
        token_budget: { tokens: 2 ** 45, period: 'month' },
        expires_at: T0 + 5,
        role: 'admin',
      });
      await subject.store.insertKey(key);
      expect(await keyOf(key.id)).toEqual(key);
    });

    test('a patch changes what it names, can set null, and leaves the rest', async () => {
      const token_budget = { tokens: 10, period: 'day' as const };
      const key = aKey({ concurrency: 4, tokens_per_minute: 5, token_budget });
      await subject.store.insertKey(key);
      const patch = {
        scopes: ['nodes:read' as const],
        concurrency: null,
        token_budget: null,
        node_labels: {},
      };
      expect(await subject.store.updateKey(key.id, patch)).toEqual({ ...key, ...patch });
      expect(await subject.store.updateKey(key.id, {})).toEqual({ ...key, ...patch });
      expect(await subject.store.updateKey('key_none', patch)).toBeUndefined();
    });

    test('a second revocation keeps the time of the first', async () => {
      const key = aKey();
      await subject.store.insertKey(key);
      expect((await subject.store.revokeKey(key.id, 100))?.revoked_at).toBe(100);
      expect((await subject.store.revokeKey(key.id, 200))?.revoked_at).toBe(100);
      expect(await subject.store.revokeKey('key_none', 1)).toBeUndefined();
    });

    test('last use only moves forward, and is told for all keys at once', async () => {
      const [a, b] = [aKey(), aKey()];
      await subject.store.insertKey(a);
      await subject.store.insertKey(b);
      await subject.store.touchKeys([
        { id: a.id, at: 50 },
        { id: b.id, at: 60 },
        { id: a.id, at: 70 },
        { id: 'key_none', at: 80 },
      ]);
      await subject.store.touchKeys([{ id: b.id, at: 10 }]);
      expect([(await keyOf(a.id))?.last_used_at, (await keyOf(b.id))?.last_used_at]).toEqual([70, 60]);
    });

    test('every write of administration raises the configuration version by one, reading and touching do not', async () => {
      const { store } = subject;
      const raisedBy = async (write: () => Promise<unknown>) => {
        const before = await store.configVersion();
        await write();
        return (await store.configVersion()) - before;
      };
      const key = aKey();
      const token = aToken();
      const enrolment = anEnrolment(token.hash);
      const { node } = enrolment;
      const credential = { ...enrolment.credential, id: newId('credential'), hash: 'another' };
      expect(await raisedBy(() => store.insertKey(key))).toBe(1);
      expect(await raisedBy(() => store.updateKey(key.id, { name: 'x' }))).toBe(1);
      expect(await raisedBy(() => store.revokeKey(key.id, 1))).toBe(1);
      expect(await raisedBy(() => store.insertToken(token))).toBe(1);
      expect(await raisedBy(() => store.enrolNode(enrolment))).toBe(1);
      expect(await raisedBy(() => store.enrolNode(anEnrolment(token.hash)))).toBe(0);
      expect(await raisedBy(() => store.updateNode(node, { cordoned: true }))).toBe(1);
      expect(await raisedBy(() => store.rotateCredential(node, credential, T0))).toBe(1);
      expect(await raisedBy(() => store.revokeNode(node, 1))).toBe(1);
      expect(await raisedBy(() => store.deleteNode(node))).toBe(1);
      expect(await raisedBy(() => store.deleteToken(token.id))).toBe(1);
      expect(await raisedBy(() => store.updateKey('key_none', { name: 'x' }))).toBe(0);
      expect(await raisedBy(() => store.touchKeys([{ id: key.id, at: 5 }]))).toBe(0);
      expect(await raisedBy(() => store.loadNodes())).toBe(0);
    });

    test('administration by many at once loses no version', async () => {
      const { store } = subject;
      const key = aKey();
      await store.insertKey(key);
      const before = await store.configVersion();
      await Promise.all(Array.from({ length: 20 }, (_, n) => store.updateKey(key.id, { name: `n${n}` })));
      expect((await store.configVersion()) - before).toBe(20);
    });
  });

  describe('enrolment', () => {
    test('a node gets the token’s labels over its own, and the token’s models', async () => {
      const token = aToken({ labels: { site: 'attic' }, allowed_models: ['llama3'] });
      await subject.store.insertToken(token);
      const enrolment = anEnrolment(token.hash, { labels: { site: 'elsewhere', gpu: 'yes' } });
      const result = await subject.store.enrolNode(enrolment);
      const stored = (await subject.store.loadNodes()).nodes.find((node) => node.id === enrolment.node);
      expect(result).toEqual({ enrolled: stored });
      expect(stored).toMatchObject({
        labels: { site: 'attic', gpu: 'yes' },
        allowed_models: ['llama3'],
        state: 'pending',
        epoch: 0,
        credentials: [enrolment.credential],
      });
    });

    test('a token with one use, raced by twenty callers, enrols exactly one', async () => {
      const token = aToken();
      await subject.store.insertToken(token);
      const racers = Array.from({ length: 20 }, () => anEnrolment(token.hash));
      const results = await Promise.all(racers.map((enrolment) => subject.store.enrolNode(enrolment)));
      expect(results.filter((result) => 'enrolled' in result)).toHaveLength(1);
      expect(results.filter((result) => 'refused' in result && result.refused === 'token_used')).toHaveLength(
        19,
      );
      const names = new Set(racers.map(({ name }) => name));
      expect((await subject.store.loadNodes()).nodes.filter(({ name }) => names.has(name))).toHaveLength(1);
    });

    test('one name, raced by ten callers, goes to exactly one and costs one use', async () => {
      const token = aToken({ max_uses: 10 });
      await subject.store.insertToken(token);
      const name = `twin-${token.id.slice(-8)}`;
      const results = await Promise.all(
        Array.from({ length: 10 }, () => subject.store.enrolNode(anEnrolment(token.hash, { name }))),
      );
      expect(results.filter((result) => 'enrolled' in result)).toHaveLength(1);
      expect(results.filter((result) => 'refused' in result && result.refused === 'name_taken')).toHaveLength(
        9,
      );
      const { rows } = await subject.store.listTokens({ limit: 500 }, T0);
      expect(rows.find(({ id }) => id === token.id)?.uses).toBe(1);
    });

    test('each refusal has its reason', async () => {
      const token = aToken({ expires_at: T0 });
      await subject.store.insertToken(token);
      expect(await subject.store.enrolNode(anEnrolment('nobody'))).toEqual({ refused: 'token_unknown' });
      expect(await subject.store.enrolNode(anEnrolment(token.hash))).toEqual({ refused: 'token_expired' });
    });

    test('the list has only tokens that still enrol, newest first, page by page', async () => {
      const far = T0 + 10 * 365 * 86_400_000;
      const now = far - 1;
      const tokens = [1, 2, 3].map((n) => aToken({ id: newId('enrolmentToken', far + n), expires_at: far }));
      for (const token of tokens) await subject.store.insertToken(token);
      await subject.store.insertToken(aToken({ expires_at: now }));
      await subject.store.insertToken(aToken({ expires_at: far, uses: 1 }));
      const first = await subject.store.listTokens({ limit: 2 }, now);
      expect(first.rows.map(({ id }) => id)).toEqual([tokens[2]!.id, tokens[1]!.id]);
      const second = await subject.store.listTokens({ limit: 2, after: first.next_after! }, now);
      expect(second).toEqual({ rows: [tokens[0]], next_after: null });
      expect(await subject.store.deleteToken(tokens[0]!.id)).toBe(true);
      expect(await subject.store.deleteToken(tokens[0]!.id)).toBe(false);
    });
  });
}
