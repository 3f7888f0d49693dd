import { once } from 'node:events';
import { chmod } from 'node:fs/promises';
import { createServer, request, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { run as runCommand } from '../../packages/cli/src/testing/command.ts';
import { openWorld, type TestNode, type World } from '../support/world.ts';

/** What `flotilla doctor` says of a real installation, and of what can lie between. */
describe('doctor', () => {
  let world: World;
  let node: TestNode;
  beforeAll(async () => {
    world = await openWorld();
    const backend = await world.backend((_request, response) => {
      response.setHeader('content-type', 'text/event-stream');
      response.end('data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\ndata: [DONE]\n\n');
    });
    node = await world.node({ name: 'attic', backends: [{ url: backend.url, slots: 4 }] });
  }, 60_000);
  afterAll(() => world?.close());

  interface Check {
    area: string;
    name: string;
    state: string;
    found: string;
    next?: string;
  }

  async function doctor(args: string[], env: Record<string, string> = {}) {
    const outcome = await runCommand(
      [
        'doctor',
        '--json',
        ...(world.database_url === undefined ? ['--data-dir', join(world.dir, 'plane')] : []),
        '--state-dir',
        node.state_dir,
        ...args,
      ],
      {
        HOME: world.dir,
        FLOTILLA_URL: world.plane.url,
        FLOTILLA_API_KEY: world.plane.admin_key,
        ...(world.database_url === undefined ? {} : { DATABASE_URL: world.database_url }),
        ...env,
      },
    );
    const { ok, checks } = JSON.parse(outcome.stdout) as { ok: boolean; checks: Check[] };
    const of = (name: string) => checks.find((check) => check.name === name);
    return { code: outcome.code, ok, checks, of };
  }

  test('finds a good installation good, and says where the time of a request goes', async () => {
    const { code, ok, checks, of } = await doctor([]);
    expect(checks.filter(({ state }) => state !== 'ok')).toEqual([]);
    expect({ code, ok }).toEqual({ code: 0, ok: true });
    for (const name of ['Node.js', 'settings', 'store', 'clock', 'WebSocket', 'streaming', 'API key', 'link'])
      expect(of(name)).toMatchObject({ state: 'ok' });
    expect(of('a request')?.found).toMatch(
      /^scripted on attic answers: first byte after .* to the control plane, .* in its backend/,
    );
  });

  test('finds what a proxy in front holds back or takes out, and says how to mend it', async () => {
    const proxy = await holdingProxy(world.plane.port);
    const { port } = proxy.address() as AddressInfo;
    const { code, of } = await doctor(['--url', `http://127.0.0.1:${port}`]);
    proxy.close();
    expect(code).toBe(1);
    expect(of('reachable')).toMatchObject({ state: 'ok' });
    expect(of('streaming')).toMatchObject({
      state: 'fail',
      next: expect.stringContaining('proxy_buffering off'),
    });
    expect(of('WebSocket')).toMatchObject({ state: 'fail', next: expect.stringContaining('Upgrade') });
  });

  test('finds a setting that nobody reads, a key that is not known, and a credential that others may read', async () => {
    const credential = join(node.state_dir, 'credential');
    await chmod(credential, 0o644);
    const { code, checks, of } = await doctor(['--api-key', `flk_${'w'.repeat(43)}`], {
      FLOTILLA_HEARBEAT_MS: '1000',
    });
    await chmod(credential, 0o600);
    expect(code).toBe(1);
    expect(of('settings')).toMatchObject({
      state: 'warn',
      found: expect.stringContaining('FLOTILLA_HEARTBEAT_MS'),
    });
    expect(of('API key')).toMatchObject({ state: 'fail' });
    expect(checks.filter(({ name, state }) => name === 'credential' && state === 'fail')).toHaveLength(1);
  });

  test('says that nothing answers, and still looks at the rest', async () => {
    const { code, of } = await doctor(['--url', 'http://127.0.0.1:9']);
    expect(code).toBe(1);
    expect(of('reachable')).toMatchObject({ state: 'fail', next: expect.stringContaining('flotilla up') });
    expect(of('link')).toMatchObject({ state: 'ok' });
  });
});

/** As a badly set up proxy is: it gathers each answer before it passes it on, and knows no upgrades. */
async function holdingProxy(port: number): Promise<Server> {
  const proxy = createServer((incoming, response) => {
    const { upgrade: _upgrade, connection: _connection, ...headers } = incoming.headers;
    const onward = request(
      { host: '127.0.0.1', port, path: incoming.url, method: incoming.method, headers },
      (answer) => {
        const chunks: Buffer[] = [];
        answer.on('data', (chunk: Buffer) => chunks.push(chunk));
        answer.on('end', () =>
          response.writeHead(answer.statusCode!, answer.headers).end(Buffer.concat(chunks)),
        );
      },
    );
    incoming.pipe(onward);
  });
  proxy.listen(0, '127.0.0.1');
  await once(proxy, 'listening');
  return proxy;
}
