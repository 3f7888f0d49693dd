import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { readControlConfig } from '../../packages/control/src/config.ts';
import { runControl, StartError } from '../../packages/control/src/main.ts';
import { memoryLog } from '../../packages/control/src/testing/memory-log.ts';
import { openPlane, type TestPlane } from '../support/plane.ts';
import { flotilla } from '../support/program.ts';
import { openRawLink, rawRegistration } from '../support/raw-node.ts';
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

  test('that stops has closed its port when its nodes lose their links, which dial again at once', async () => {
    const { control, admin_key: key } = plane;
    const token = await plane.call('POST', '/api/v1/enrolment-tokens', { key, body: {} });
    const enrolled = await plane.call('POST', '/node/v1/enrol', {
      body: { token: (token.json as unknown as { token: string }).token, name: 'left' },
    });
    const { credential } = enrolled.json as unknown as { credential: string };
    const link = await openRawLink(`${control.url.replace('http', 'ws')}/node/v1/link`, credential);
    link.send(rawRegistration('left'));
    await link.next('node.registered');
    const redialled = link.closed.then(() => once(connect(control.port, '127.0.0.1'), 'connect'));
    await Promise.all([plane.restart(), expect(redialled).rejects.toThrow('ECONNREFUSED')]);
  });

  test('stops once, however often it is asked, and is gone then', async () => {
    const { control } = plane;
    await Promise.all([control.close(), control.close(), control.closed]);
    await expect(fetch(`${control.url}/healthz`)).rejects.toThrow('fetch failed');
  });
});

test('a control plane says at its start that its secret key is another one, or missing where something is sealed', async () => {
  const place = await embeddedPlace();
  const start = (settings: Record<string, string> = {}) =>
    runControl(readControlConfig({ FLOTILLA_DATA_DIR: place.data_dir, FLOTILLA_PORT: '0', ...settings }), {
      log: quiet,
    });
  const right = { FLOTILLA_SECRET_KEY: 'r'.repeat(32), FLOTILLA_ADMIN_KEY: 'a'.repeat(32) };
  const call = (control: { url: string }, body: unknown) =>
    fetch(`${control.url}/api/v1/providers`, {
      method: 'POST',
      headers: { authorization: `Bearer ${right.FLOTILLA_ADMIN_KEY}`, 'content-type': 'application/json' },
      body: JSON.stringify(body),
    });
  const upstream = { name: 'up', base_url: 'http://127.0.0.1:9/v1', enabled: false, api_key: 'sk-x' };
  try {
    // Nothing is sealed yet: it starts, and says what is missing when a key is given.
    const without = await start({ FLOTILLA_ADMIN_KEY: right.FLOTILLA_ADMIN_KEY });
    const refused = await call(without, upstream);
    expect([refused.status, await refused.text()]).toEqual([
      400,
      expect.stringContaining('FLOTILLA_SECRET_KEY'),
    ]);
    await without.close();
    const control = await start(right);
    expect((await call(control, upstream)).status).toBe(201);
    await control.close();
    await expect(start({ FLOTILLA_SECRET_KEY: 'w'.repeat(32) })).rejects.toThrow(
      /FLOTILLA_SECRET_KEY is not the one that the secrets in this store were sealed with[^]*secret-key/,
    );
    await expect(start()).rejects.toThrow(/FLOTILLA_SECRET_KEY is not set/);
    // So it stands in the terminal, with what to do; and with no key.
    const wrong = { FLOTILLA_DATA_DIR: place.data_dir, FLOTILLA_SECRET_KEY: 'w'.repeat(32) };
    const { code, stderr } = await flotilla(['control', '--port', '0'], wrong).ended;
    expect(code).toBe(2);
    expect(stderr).toMatch(
      /^error: FLOTILLA_SECRET_KEY is not the one .*: set the one that .* Nothing was changed\.$/m,
    );
    expect(stderr).not.toMatch(/w{8}|r{8}|\n +at /);
  } finally {
    await place.drop();
  }
  // Five starts of an embedded store.
}, 60_000);

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
