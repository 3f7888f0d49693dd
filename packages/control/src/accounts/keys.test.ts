import type { Store } from '@flotilla/core';
import { describe, expect, test, vi } from 'vitest';
import { systemRandom } from '../clock.ts';
import { CREDENTIAL, keyRecord } from '../testing/key-record.ts';
import { ManualClock } from '@flotilla/core/testing';
import { memoryLog } from '../testing/memory-log.ts';
import { hashCredential } from './credential.ts';
import { createKeys, ensureAdminKey, principalOf } from './keys.ts';

function setup() {
  const clock = new ManualClock();
  const touched: { id: string; at: number }[][] = [];
  const broken = { yes: false };
  const log = memoryLog();
  const store = {
    touchKeys: (used: { id: string; at: number }[]) => {
      if (broken.yes) return Promise.reject(new Error('no store'));
      touched.push(used);
      return Promise.resolve();
    },
  } as Partial<Store> as Store;
  return { clock, touched, broken, log, keys: createKeys({ store, clock, log }) };
}

describe('authentication', () => {
  test('a key of the snapshot is known, another is not', () => {
    const { keys } = setup();
    keys.replace([keyRecord()]);
    expect(keys.authenticate(CREDENTIAL)).toMatchObject({
      principal: { key: { name: 'test' }, admin: false },
    });
    expect(keys.authenticate('flk_other')).toEqual({ refused: 'unknown' });
    keys.replace([]);
    expect(keys.authenticate(CREDENTIAL)).toEqual({ refused: 'unknown' });
  });

  test('an expired key and a revoked one say so', () => {
    const { keys, clock } = setup();
    keys.replace([keyRecord({ expires_at: clock.wall_ms() + 100 })]);
    expect(keys.authenticate(CREDENTIAL)).toHaveProperty('principal');
    clock.advance(100);
    expect(keys.authenticate(CREDENTIAL)).toEqual({ refused: 'expired' });
    keys.replace([keyRecord({ revoked_at: 5 })]);
    expect(keys.authenticate(CREDENTIAL)).toEqual({ refused: 'revoked' });
  });

  test('a revocation counts before the next snapshot', () => {
    const { keys } = setup();
    keys.replace([keyRecord()]);
    keys.put(keyRecord({ revoked_at: 7 }));
    expect(keys.authenticate(CREDENTIAL)).toEqual({ refused: 'revoked' });
    // Read before it, taken over after it.
    keys.replace([keyRecord()]);
    expect(keys.authenticate(CREDENTIAL)).toEqual({ refused: 'revoked' });
  });

  test('an admin has every scope, another key its own', () => {
    const admin = principalOf(keyRecord({ role: 'admin', scopes: [] }));
    const user = principalOf(keyRecord({ scopes: ['jobs'] }));
    expect([admin.has('inference'), admin.has('agents'), admin.admin]).toEqual([true, true, true]);
    expect([user.has('jobs'), user.has('inference'), user.admin]).toEqual([true, false, false]);
  });
});

describe('times of last use', () => {
  test('are written in one statement every few seconds, and only when something was used', async () => {
    const { keys, clock, touched } = setup();
    keys.replace([keyRecord(), keyRecord({ id: 'key_2', hash: hashCredential('flk_2') })]);
    keys.authenticate(CREDENTIAL);
    keys.authenticate(CREDENTIAL);
    keys.authenticate('flk_2');
    clock.advance(5000);
    await vi.waitFor(() => expect(clock.pending).toBe(1));
    expect(touched.map((batch) => batch.map(({ id }) => id))).toEqual([[keyRecord().id, 'key_2']]);
    await keys.flush();
    expect(touched).toHaveLength(1);
  });

  test('survive a store that fails, and a snapshot that is older', async () => {
    const { keys, clock, touched, broken, log } = setup();
    keys.replace([keyRecord()]);
    keys.authenticate(CREDENTIAL);
    broken.yes = true;
    await keys.flush();
    await keys.flush();
    expect(log.lines.map(({ level }) => level)).toEqual(['warn']);
    keys.replace([keyRecord()]);
    expect(keys.find(keyRecord().id)?.last_used_at).toBe(clock.wall_ms());
    broken.yes = false;
    await keys.close();
    expect(touched).toEqual([[{ id: keyRecord().id, at: clock.wall_ms() }]]);
    expect(clock.pending).toBe(0);
  });
});

describe('the bootstrap key', () => {
  const secret = 's'.repeat(40);
  const inserted = async (records: ReturnType<typeof keyRecord>[]) => {
    const made: ReturnType<typeof keyRecord>[] = [];
    const store = {
      loadKeys: () => Promise.resolve(records),
      insertKey: (key: ReturnType<typeof keyRecord>) => Promise.resolve(void made.push(key)),
    } as Partial<Store> as Store;
    const log = memoryLog();
    await ensureAdminKey(secret, { store, clock: new ManualClock(), random: systemRandom, log });
    return { made, log };
  };

  test('is made once, as a hash', async () => {
    const { made } = await inserted([]);
    expect(made).toMatchObject([{ role: 'admin', hash: hashCredential(secret) }]);
    expect(JSON.stringify(made)).not.toContain(secret);
    expect((await inserted(made)).made).toEqual([]);
  });

  test('stays revoked, and says so', async () => {
    const { made, log } = await inserted([
      keyRecord({ hash: hashCredential(secret), role: 'admin', revoked_at: 1 }),
    ]);
    expect(made).toEqual([]);
    expect(log.lines[0]?.message).toMatch(/was revoked and stays so/);
  });

  test('an earlier one that still works is named', async () => {
    const { made, log } = await inserted([keyRecord({ name: 'FLOTILLA_ADMIN_KEY', role: 'admin' })]);
    expect(made).toHaveLength(1);
    expect(log.lines[0]).toMatchObject({ level: 'warn', fields: { keys: [keyRecord().id] } });
  });
});
