import type { KeyRecord } from '@flotilla/core';
import { describe, expect, test, vi } from 'vitest';
import { keyRecord } from '../testing/key-record.ts';
import { ManualClock } from '@flotilla/core/testing';
import { memoryLog } from '../testing/memory-log.ts';
import { startSnapshots } from './snapshots.ts';

async function setup() {
  const clock = new ManualClock();
  const log = memoryLog();
  const state = { version: 1, records: [keyRecord()], broken: false, nodesBroken: false };
  const seen = { keys: [] as (readonly KeyRecord[])[], nodes: 0, reads: 0 };
  const store = {
    configVersion: () => {
      seen.reads += 1;
      return state.broken ? Promise.reject(new Error('no store')) : Promise.resolve(state.version);
    },
    loadKeys: () => Promise.resolve(state.records),
  };
  const nodes = () => {
    seen.nodes += 1;
    return state.nodesBroken ? Promise.reject(new Error('no nodes')) : Promise.resolve();
  };
  const snapshots = await startSnapshots({
    store,
    clock,
    log,
    keys: (records) => void seen.keys.push(records),
    nodes,
  });
  return { clock, log, state, seen, snapshots };
}

describe('the snapshot', () => {
  test('is there before anybody is served', async () => {
    const { seen } = await setup();
    expect(seen).toMatchObject({ keys: [[keyRecord()]], nodes: 1 });
  });

  test('is read again only when the version moved, every 500 ms', async () => {
    const { clock, state, seen } = await setup();
    clock.advance(499);
    expect(seen.reads).toBe(1);
    clock.advance(1);
    await vi.waitFor(() => expect(clock.pending).toBe(1));
    expect(seen).toMatchObject({ reads: 2, nodes: 1 });
    state.version = 2;
    clock.advance(500);
    await vi.waitFor(() => expect(seen.nodes).toBe(2));
    expect(seen.keys).toHaveLength(2);
  });

  test('follows a hint at once, by a reading that began after it', async () => {
    const { state, seen, snapshots } = await setup();
    const early = snapshots.changed();
    state.version = 2;
    await Promise.all([early, snapshots.changed(), snapshots.changed()]);
    expect(seen.nodes).toBe(2);
    expect(seen.reads).toBe(3);
  });

  test('stays what it was while the store fails, which is told once', async () => {
    const { state, seen, snapshots, log } = await setup();
    state.broken = true;
    await snapshots.changed();
    await snapshots.changed();
    state.broken = false;
    state.version = 2;
    await snapshots.changed();
    expect(log.lines.map(({ level }) => level)).toEqual(['error', 'info']);
    expect(seen.keys).toHaveLength(2);
  });

  test('is taken over whole or tried again', async () => {
    const { state, seen, snapshots } = await setup();
    state.version = 2;
    state.nodesBroken = true;
    await snapshots.changed();
    state.nodesBroken = false;
    await snapshots.changed();
    await snapshots.changed();
    expect(seen.nodes).toBe(3);
  });

  test('leaves no timer behind', async () => {
    const { clock, snapshots } = await setup();
    await snapshots.close();
    await snapshots.close();
    expect(clock.pending).toBe(0);
    await snapshots.changed();
  });
});
