import { mkdir, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { HeartbeatFile, heartbeatInterval } from './heartbeat-file.ts';
import { writeRegistry } from './registry-file.ts';
import { folder } from './testing/folder.ts';
import { ManualClock } from '@flotilla/core/testing';
import { recordedLog } from './testing/recorded-log.ts';
import { until } from './testing/until.ts';

async function setup() {
  const dir = await folder();
  const clock = new ManualClock();
  const log = recordedLog();
  let progress = 0;
  const path = join(dir, 'heartbeat.json');
  const file = new HeartbeatFile({
    path,
    registry_path: join(dir, 'registry.json'),
    pid: 4711,
    boot_id: 'boot_1',
    stale_after_ms: 8_000,
    progress_seq: () => progress++,
    clock,
    log,
  });
  const read = async () => JSON.parse(await readFile(path, 'utf8')) as Record<string, unknown>;
  return { dir, path, clock, log, file, read };
}

test('four beats fit into the time after which it counts as stale, within half a second and fifteen', () => {
  expect([1_000, 2_000, 8_000, 60_000, 600_000].map(heartbeatInterval)).toEqual([
    500, 500, 2_000, 15_000, 15_000,
  ]);
});

test('it tells all the contract names, and each status in its turn', async () => {
  const { file, read, dir } = await setup();
  await file.starting();
  expect(await read()).toEqual({
    pid: 4711,
    boot_id: 'boot_1',
    status: 'starting',
    link: 'disconnected',
    last_ack_at: null,
    progress_seq: 0,
    interval_ms: 2_000,
    stale_after_ms: 8_000,
    updated_at: '2030-01-01T00:00:00.000Z',
    registry_path: join(dir, 'registry.json'),
  });
  await file.running();
  expect((await read())['status']).toBe('running');
  await file.stopping();
  expect((await read())['status']).toBe('stopping');
  await file.stopped();
  expect((await read())['status']).toBe('stopped');
});

test('while running it is written at every interval, with the last acknowledgement', async () => {
  const { file, read, clock } = await setup();
  await file.running();
  file.acked(Date.parse('2030-01-01T00:00:01Z'));
  clock.advance(2_000);
  await until(async () => {
    expect(await read()).toMatchObject({
      updated_at: '2030-01-01T00:00:02.000Z',
      last_ack_at: '2030-01-01T00:00:01.000Z',
    });
  });
  await file.stopped();
});

test('the link’s state is written when it changes, not with the next beat', async () => {
  const { file, read } = await setup();
  await file.running();
  file.link('connected');
  await until(async () => expect(await read()).toMatchObject({ link: 'connected' }));
  file.link('disconnected');
  await until(async () => expect(await read()).toMatchObject({ link: 'disconnected' }));
  await file.stopped();
});

test('on stop the timer is cancelled before `stopping` is written, and no beat brings `running` back', async () => {
  const { file, read, clock } = await setup();
  await file.running();
  clock.advance(2_000); // a write is under way
  const stopping = file.stopping();
  expect(clock.pending).toBe(0);
  await stopping;
  expect((await read())['status']).toBe('stopping');
  clock.advance(60_000);
  expect((await read())['status']).toBe('stopping');
});

test('a stop that comes while `running` is being written leaves no timer', async () => {
  const { file, read, clock } = await setup();
  await Promise.all([file.running(), file.stopping()]);
  expect(clock.pending).toBe(0);
  expect((await read())['status']).toBe('stopping');
});

test('a beat never rewrites the registry', async () => {
  const { file, clock, dir, read } = await setup();
  const registry = join(dir, 'registry.json');
  await writeRegistry(registry, { pid: 4711, boot_id: 'boot_1', agents: [] }, clock.wall_ms());
  const before = await stat(registry);
  await file.running();
  for (let beat = 0; beat < 20; beat++) clock.advance(2_000);
  await until(async () => expect((await read())['updated_at']).toBe('2030-01-01T00:00:40.000Z'));
  await file.stopped();
  const after = await stat(registry);
  expect([after.ino, after.mtimeMs]).toEqual([before.ino, before.mtimeMs]);
});

test('a disk that refuses is logged once, and written again when it lets us', async () => {
  const { file, clock, path, read, log } = await setup();
  await file.running();
  await rm(path);
  await mkdir(path); // a directory in its place: the rename fails
  clock.advance(6_000);
  await until(() => expect(log.lines.filter(({ level }) => level === 'error')).toHaveLength(1));
  await rm(path, { recursive: true });
  clock.advance(2_000);
  await until(async () => expect((await read())['status']).toBe('running'));
  // The file is there a moment before its writer knows that it is.
  await until(() => expect(log.lines.map(({ level }) => level)).toEqual(['error', 'info']));
  await file.stopped();
});
