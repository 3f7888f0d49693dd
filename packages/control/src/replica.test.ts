import { describe, expect, test, vi } from 'vitest';
import { joinReplicas } from './replica.ts';
import { ManualClock } from '@flotilla/core/testing';
import { memoryLog } from './testing/memory-log.ts';

function setup(engine: 'embedded' | 'postgres' = 'postgres', sessions: ReadonlySet<string> | null = null) {
  const rows = new Map<string, number>();
  const died: string[] = [];
  const ended: string[] = [];
  const failed = vi.fn<() => void>();
  const buried = vi.fn<() => void>();
  const renewed = vi.fn<() => void>();
  const waits = vi.fn<() => void>();
  const clock = new ManualClock();
  const store = {
    engine,
    enterReplica: (id: string) => Promise.resolve(void rows.set(id, 1)),
    bumpReplica: (id: string) =>
      Promise.resolve(rows.has(id) && rows.set(id, rows.get(id)! + 1) !== undefined),
    endReplica: (id: string) => Promise.resolve(void rows.delete(id)),
    listReplicas: () =>
      Promise.resolve(
        [...rows].map(([id, bumps]) => ({
          id,
          bumps,
          bus: id.startsWith('bus'),
          named: !id.startsWith('unnamed'),
        })),
      ),
    openSessions: () => Promise.resolve(sessions),
    endOrphans: (id: string) => Promise.resolve(ended.push(id)),
  };
  const join = (id: string, bus = false) =>
    joinReplicas({
      store,
      clock,
      log: memoryLog(),
      id,
      bus,
      heartbeat_ms: 1000,
      waits,
      failed,
      renewed,
      buried,
      died: (other) => void died.push(other),
    });
  return { rows, ended, died, clock, join, waits, failed, renewed, buried, store };
}

describe('a replica', () => {
  test('that finds no other is alone at once, says each second that it lives, and leaves nothing behind', async () => {
    const { rows, clock, join, waits } = setup();
    const replica = await join('a');
    expect(waits).not.toHaveBeenCalled();
    clock.advance(1000);
    await vi.waitFor(() => expect(clock.pending).toBe(1));
    expect(rows.get('a')).toBe(2);
    await replica.leave();
    expect([...rows.keys()]).toEqual([]);
    expect(clock.pending).toBe(0);
  });

  test('that leaves ends what it could not record, and stays to be found where it cannot', async () => {
    const { rows, ended, join, store } = setup();
    await (await join('a')).leave();
    expect(ended).toEqual(['a']);
    store.endOrphans = () => Promise.reject(new Error('no store'));
    await (await join('b')).leave();
    expect([...rows.keys()]).toEqual(['b']);
  });

  test('that cannot write its row says so each time, for those who are not writing now', async () => {
    const { clock, join, failed, store } = setup();
    await join('a');
    expect(failed).not.toHaveBeenCalled();
    store.bumpReplica = () => Promise.reject(new Error('no store'));
    for (const times of [1, 2]) {
      clock.advance(1000);
      await vi.waitFor(() => expect(failed).toHaveBeenCalledTimes(times));
      await vi.waitFor(() => expect(clock.pending).toBe(1));
    }
  });

  test('that can write its row again after more than H says so once', async () => {
    const { clock, join, failed, renewed, store } = setup();
    await join('a');
    const bump = async () => {
      clock.advance(500);
      await vi.waitFor(() => expect(clock.pending).toBe(1));
    };
    const { bumpReplica } = store;
    store.bumpReplica = () => Promise.reject(new Error('no store'));
    for (const times of [1, 2]) {
      await bump();
      expect(failed).toHaveBeenCalledTimes(times);
    }
    store.bumpReplica = bumpReplica;
    expect(renewed).not.toHaveBeenCalled();
    for (let n = 0; n < 3; n++) await bump();
    expect(renewed).toHaveBeenCalledTimes(1);
  });

  test('that slept until another took its place makes no new row, and is told that it is over', async () => {
    const { rows, clock, join, buried } = setup();
    await join('a');
    rows.delete('a');
    clock.advance(1000);
    await vi.waitFor(() => expect(buried).toHaveBeenCalled());
    expect(rows.has('a')).toBe(false);
  });

  test('that sees another live is refused, and its row goes', async () => {
    const { rows, ended, clock, join } = setup();
    rows.set('other', 7);
    const joining = join('a');
    const refused = joining.catch((error: unknown) => String(error));
    await vi.waitFor(() => expect(clock.started).toContain(2500));
    rows.set('other', 8);
    clock.advance(2500);
    expect(await refused).toMatch(/other.*set the same NATS_URL/s);
    expect([...rows.keys()]).toEqual(['other']);
    expect(ended).not.toContain('other');
  });

  test('clears away another that stands still, and says that it waits for that', async () => {
    const { rows, ended, clock, join, waits } = setup();
    rows.set('dead', 7);
    const joining = join('a');
    await vi.waitFor(() => expect(clock.started).toContain(2500));
    expect(waits).toHaveBeenCalledTimes(1);
    clock.advance(2500);
    await joining;
    expect([...rows.keys()]).toEqual(['a']);
    expect(ended).toEqual(['dead']);
  });

  test('watches another that has no session at the store for one bump, and one that has for two', async () => {
    const killed = setup('postgres', new Set(['a', 'elsewhere']));
    killed.rows.set('dead', 7);
    const succeeding = killed.join('a');
    await vi.waitFor(() => expect(killed.clock.started).toContain(1200));
    expect(killed.ended).toEqual([]);
    killed.clock.advance(1200);
    await succeeding;
    expect(killed.ended).toEqual(['dead']);

    const hangs = setup('postgres', new Set(['a', 'hangs']));
    hangs.rows.set('hangs', 7).set('dead', 7);
    const joining = hangs.join('a');
    await vi.waitFor(() => expect(hangs.clock.started).toContain(2500));
    expect(hangs.ended).toEqual([]);
    hangs.clock.advance(2500);
    await joining;
    expect(hangs.ended).toEqual(['hangs', 'dead']);
  });

  test('watches another whose sessions bear no name as if it had one', async () => {
    const { rows, ended, clock, join } = setup('postgres', new Set(['a']));
    rows.set('unnamed', 7).set('dead', 7);
    const joining = join('a');
    await vi.waitFor(() => expect(clock.started).toContain(2500));
    expect(ended).toEqual([]);
    clock.advance(2500);
    await joining;
    expect(ended).toEqual(['unnamed', 'dead']);
  });

  test('is refused beside another that had no session for a moment only, and lives', async () => {
    const { rows, ended, clock, join } = setup('postgres', new Set(['a']));
    rows.set('other', 7);
    const refused = join('a').catch((error: unknown) => String(error));
    await vi.waitFor(() => expect(clock.started).toContain(1200));
    rows.set('other', 8);
    clock.advance(1200);
    expect(await refused).toMatch(/other.*set the same NATS_URL/s);
    expect(ended).not.toContain('other');
  });

  test('watches on where another that had no session has one again', async () => {
    const { rows, ended, clock, join, store } = setup('postgres', new Set(['a']));
    rows.set('other', 7);
    const refused = join('a').catch((error: unknown) => String(error));
    await vi.waitFor(() => expect(clock.started).toContain(1200));
    store.openSessions = () => Promise.resolve(new Set(['a', 'other']));
    clock.advance(1200);
    await vi.waitFor(() => expect(clock.started).toContain(1300));
    rows.set('other', 8);
    clock.advance(1300);
    expect(await refused).toMatch(/other.*set the same NATS_URL/s);
    expect(ended).not.toContain('other');
  });

  test('says how old its last bump is, but on a store that nobody else can open', async () => {
    for (const [engine, age_ms] of [
      ['postgres', 700],
      ['embedded', 0],
    ] as const) {
      const { clock, join } = setup(engine);
      const replica = await join('a');
      clock.advance(700);
      expect(replica.bumpAge_ms()).toBe(age_ms);
      await replica.leave();
    }
  });

  test('of two that start together at most one stays', async () => {
    const { clock, join } = setup();
    const both = Promise.allSettled([join('a'), join('b')]);
    await vi.waitFor(() => expect(clock.started.filter((ms) => ms === 2500)).not.toEqual([]));
    for (let i = 0; i < 26; i++) {
      clock.advance(100);
      await Promise.resolve();
    }
    const joined = (await both).filter(({ status }) => status === 'fulfilled');
    expect(joined.length).toBeLessThanOrEqual(1);
  });

  test('on an embedded store does not wait: the lock lets no other live', async () => {
    const { rows, ended, join } = setup('embedded');
    rows.set('dead', 7);
    await join('a');
    expect(ended).toEqual(['dead']);
  });

  test('with a bus has others with one beside it, and clears away one that stands still for 4 H of looking', async () => {
    const { rows, ended, died, clock, join, store } = setup();
    rows.set('bus-b', 7);
    const replica = await join('bus-a', true);
    expect(await replica.lives('bus-b')).toBe(true);
    const tick = async () => {
      const { length } = clock.started;
      clock.advance(1000);
      await vi.waitFor(() => expect(clock.started.length).toBeGreaterThan(length));
    };
    for (let n = 0; n < 3; n++) await tick();
    // Time without the store is not time of looking.
    const { listReplicas } = store;
    store.listReplicas = () => Promise.reject(new Error('no store'));
    for (let n = 0; n < 10; n++) await tick();
    store.listReplicas = listReplicas;
    expect(ended).toEqual([]);
    for (let n = 0; n < 3; n++) await tick();
    expect([ended, died, [...rows.keys()]]).toEqual([['bus-b'], ['bus-b'], ['bus-a']]);
    expect(await replica.lives('bus-b')).toBe(false);
    await replica.leave();
  });

  test('with a bus is refused beside one without it, that lives', async () => {
    const { rows, clock, join } = setup();
    rows.set('other', 7);
    const refused = join('bus-a', true).catch((error: unknown) => String(error));
    await vi.waitFor(() => expect(clock.started).toContain(2500));
    rows.set('other', 8);
    clock.advance(2500);
    expect(await refused).toMatch(/other.*set the same NATS_URL/s);
  });
});
