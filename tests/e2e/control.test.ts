import { once } from 'node:events';
import { createServer } from 'node:net';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { readControlConfig } from '../../packages/control/src/config.ts';
import { runControl, StartError } from '../../packages/control/src/main.ts';
import { memoryLog } from '../../packages/control/src/testing/memory-log.ts';
import { openPlane, type TestPlane } from '../support/plane.ts';
import { embeddedPlace, quiet, testServer } from '../support/store.ts';

/** The life of one control plane, from its first start to its end: each test goes on where the last one stopped. */
describe('a control plane', () => {
  const log = memoryLog();
  let plane: TestPlane;
  beforeAll(async () => {
    plane = await openPlane({ FLOTILLA_HEARTBEAT_MS: '500' }, log);
  });
  afterAll(() => plane.close());

  const adminId = async () =>
    ((await plane.call('GET', '/api/v1/whoami', { key: plane.admin_key })).json as unknown as { id: string })
      .id;

  test('says where it listens, what its store survives, and what is odd about its settings', () => {
    const said = log.lines.map(({ message }) => message).join('\n');
    expect(said).toMatch(testServer === undefined ? /survives process death/ : /survives power loss/);
    expect(said).toContain(`Listening at ${plane.control.url}.`);
    expect(said).toMatch(/FLOTILLA_HEARTBEAT_MS is 500: .*for tests/);
    expect(JSON.stringify(log.lines)).not.toContain(plane.admin_key);
  });

  test('refuses to be the second one on a store', async () => {
    await expect(plane.second()).rejects.toThrow(/another|in use|running/i);
    expect((await plane.call('GET', '/readyz')).status).toBe(200);
  });

  test('does not wait for idle connections when it stops; keeps its keys and their ids over a restart', async () => {
    const before = await adminId();
    const { closed } = plane.control;
    const began = performance.now();
    const stopped = closed.then(() => performance.now());
    await plane.restart();
    expect((await stopped) - began).toBeLessThan(2000);
    expect(await adminId()).toBe(before);
    const keys = await plane.call('GET', '/api/v1/keys', { key: plane.admin_key });
    expect((keys.json as unknown as { data: unknown[] }).data).toHaveLength(1);
  });

  test('stops once, however often it is asked, and is gone then', async () => {
    const { control } = plane;
    await Promise.all([control.close(), control.close(), control.closed]);
    await expect(fetch(`${control.url}/healthz`)).rejects.toThrow('fetch failed');
  });
});

test('a control plane says that its port is taken, by name, and leaves nothing open', async () => {
  const other = createServer().listen(0, '127.0.0.1');
  await once(other, 'listening');
  const { port } = other.address() as { port: number };
  const place = await embeddedPlace();
  try {
    const settings = { FLOTILLA_DATA_DIR: place.data_dir, FLOTILLA_PORT: String(port) };
    const start = () => runControl(readControlConfig(settings), { log: quiet });
    await expect(start()).rejects.toThrow(StartError);
    // The data directory is free again: the same reason, not "in use".
    await expect(start()).rejects.toThrow(new RegExp(`Port ${port} on 127.0.0.1 is taken`));
  } finally {
    other.close();
    await place.drop();
  }
});
