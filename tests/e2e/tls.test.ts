import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import type { IncomingMessage } from 'node:http';
import { Agent, request } from 'node:https';
import { type AddressInfo, connect as connectPlain } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect, createServer as createTlsServer, type TLSSocket } from 'node:tls';
import type { ErrorBody, ProviderView } from '@flotilla/protocol';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { memoryLog } from '../../packages/control/src/testing/memory-log.ts';
import { type Authority, makeAuthority } from '../support/authority.ts';
import { type ConnectProxy, startConnectProxy } from '../support/connect-proxy.ts';
import { openPlane, type TestPlane } from '../support/plane.ts';
import { flotilla, type Program } from '../support/program.ts';
import { chatAnswer, type ScriptedBackend, startScriptedBackend } from '../support/scripted-backend.ts';
import { embeddedPlace } from '../support/store.ts';
import { until } from '../support/until.ts';

/** TLS on the control plane's own port, and the way to it from behind a company's proxy. */
let dir: string;
let authority: Authority;
let files: { FLOTILLA_TLS_CERT: string; FLOTILLA_TLS_KEY: string };
let plane: TestPlane;
const log = memoryLog();

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'flotilla-tls-'));
  authority = await makeAuthority(dir);
  files = { FLOTILLA_TLS_CERT: join(dir, 'tls.pem'), FLOTILLA_TLS_KEY: join(dir, 'tls.key') };
  await renew();
  plane = await openPlane({ ...files, FLOTILLA_HEARTBEAT_MS: '500' }, log);
}, 60_000);
afterAll(async () => {
  await plane?.close();
  await rm(dir, { recursive: true, force: true });
});

async function renew(): Promise<void> {
  const { cert, key } = await authority.issue('fleet.test', '127.0.0.1');
  await writeFile(files.FLOTILLA_TLS_CERT, cert);
  await writeFile(files.FLOTILLA_TLS_KEY, key);
}

interface Reply {
  status: number;
  body: string;
  socket: TLSSocket;
}

async function ask(
  path: string,
  agent: Agent | false = false,
  init: { method?: string; headers?: Record<string, string>; body?: string } = {},
): Promise<Reply> {
  const { body = '', ...how } = init;
  const { port } = plane.control;
  const asked = request({ host: '127.0.0.1', port, path, ca: authority.pem, agent, ...how }).end(body);
  const [answer] = (await once(asked, 'response')) as [IncomingMessage];
  const socket = answer.socket as TLSSocket;
  let text = '';
  for await (const part of answer.setEncoding('utf8')) text += part as string;
  return { status: answer.statusCode!, body: text, socket };
}

async function serial(): Promise<string> {
  const socket = connect({ host: '127.0.0.1', port: plane.control.port, ca: authority.pem });
  await once(socket, 'secureConnect');
  const { serialNumber } = socket.getPeerCertificate();
  socket.destroy();
  return serialNumber;
}

describe('with a certificate and its key', () => {
  test('the port speaks https, from TLS 1.2 on', async () => {
    expect((await ask('/readyz')).status).toBe(200);
    const old = connect({
      host: '127.0.0.1',
      port: plane.control.port,
      ca: authority.pem,
      minVersion: 'TLSv1',
      maxVersion: 'TLSv1.1',
      ciphers: 'DEFAULT@SECLEVEL=0',
    });
    const [error] = (await once(old, 'error')) as [Error];
    expect(error.message).toMatch(/protocol/i);
  });

  test('a container of it is found ready, though its certificate is for another name than loopback', async () => {
    const healthcheck = join(import.meta.dirname, '../../deploy/healthcheck.js');
    const env = { ...files, FLOTILLA_PORT: String(plane.control.port) };
    const [code] = (await once(spawn(process.execPath, [healthcheck], { env }), 'exit')) as [number];
    expect(code).toBe(0);
  });

  test('a renewal reaches new connections, and drops none', async () => {
    const agent = new Agent({ keepAlive: true, maxSockets: 1, ca: authority.pem });
    const before = await ask('/readyz', agent);
    const first = before.socket.getPeerCertificate().serialNumber;
    await renew();
    await until('new connections get the new certificate', async () => (await serial()) !== first);
    const after = await ask('/readyz', agent);
    expect(after.status).toBe(200);
    expect(after.socket).toBe(before.socket);
    agent.destroy();
  });

  test('a renewal that is written piece by piece is taken when it is whole, and is complained about once', async () => {
    const first = await serial();
    const { cert, key } = await authority.issue('fleet.test', '127.0.0.1');
    await writeFile(files.FLOTILLA_TLS_CERT, cert);
    const complaints = () => log.lines.filter(({ message }) => message.includes('TLS files cannot be used'));
    await until('it is noticed', () => complaints().length > 0);
    expect(await serial()).toBe(first);
    await writeFile(files.FLOTILLA_TLS_KEY, key);
    await until('the new pair is in use', async () => (await serial()) !== first);
    expect(complaints()).toHaveLength(1);
  });
});

describe('a control plane does not start', () => {
  const start = (env: Record<string, string>) => openPlane({ ...files, ...env });

  test('without one of the two files, or where one cannot be read', async () => {
    await expect(start({ FLOTILLA_TLS_KEY: '' })).rejects.toThrow(/FLOTILLA_TLS_KEY is not/);
    const missing = join(dir, 'nowhere.pem');
    await expect(start({ FLOTILLA_TLS_CERT: missing })).rejects.toThrow(
      `FLOTILLA_TLS_CERT is ${missing}: there is no such file.`,
    );
    await expect(start({ FLOTILLA_TLS_CERT: files.FLOTILLA_TLS_KEY })).rejects.toThrow(
      /holds no certificate/,
    );
  });

  test('with the key of another certificate', async () => {
    const other = join(dir, 'other.key');
    await writeFile(other, (await authority.issue('other.test')).key);
    await expect(start({ FLOTILLA_TLS_KEY: other })).rejects.toThrow(
      /is not the key of the first certificate/,
    );
  });
});

describe('from behind a proxy, with an authority of one’s own', () => {
  let proxy: ConnectProxy;
  let backend: ScriptedBackend;
  /** Where the names lead that only the proxy knows. */
  const leads = new Map<string, () => number>();
  const programs: Program[] = [];

  beforeAll(async () => {
    proxy = await startConnectProxy((name) => leads.get(name)?.());
    leads.set('fleet.test', () => plane.control.port);
    backend = await startScriptedBackend((_request, response) => {
      response.setHeader('content-type', 'application/json');
      response.end(chatAnswer('through it all'));
    });
  });
  afterAll(async () => {
    await Promise.all(programs.map((program) => program.stop()));
    await proxy.close();
    await backend.close();
  });

  const environment = () => ({
    HOME: dir,
    HTTPS_PROXY: proxy.url,
    HTTP_PROXY: proxy.url,
    NODE_EXTRA_CA_CERTS: authority.path,
    FLOTILLA_API_KEY: plane.admin_key,
  });
  const address = () => `https://fleet.test:${plane.control.port}`;
  const start = (...args: string[]) => {
    const program = flotilla(args, environment());
    programs.push(program);
    return program;
  };
  /** Where only the proxy knows the way. */
  const through = () => proxy.asked.splice(0);

  test('a command makes a token, a machine joins with it, and serves', async () => {
    const made = await start('tokens', 'create', '--url', address()).ended;
    expect(made).toMatchObject({ code: 0 });
    expect(through()).toEqual([`fleet.test:${plane.control.port}`]);

    const state_dir = join(dir, 'node');
    const node = start(
      ...['join', address(), '--token', made.stdout.trim(), '--name', 'behind', '--state-dir', state_dir],
      ...['--backend', backend.url],
    );
    const served = await until('it serves', async () => {
      if (node.child.exitCode !== null) throw new Error(node.output());
      const reply = await ask('/v1/chat/completions', false, {
        method: 'POST',
        headers: { authorization: `Bearer ${plane.admin_key}`, 'content-type': 'application/json' },
        body: JSON.stringify({ model: 'scripted', messages: [] }),
      });
      return reply.status === 200 && reply.body;
    });
    expect(served).toContain('through it all');
    // Enrolment and link; the backend is on the node's own network, and is not asked through the proxy.
    expect(new Set(through())).toEqual(new Set([`fleet.test:${plane.control.port}`]));
  });

  test('a control plane asks its providers: through the proxy, or not at all', async () => {
    const front = createTlsServer(await authority.issue('upstream.test'), (near) => {
      const far = connectPlain(backend.port, '127.0.0.1');
      for (const [one, other] of [[near, far] as const, [far, near] as const])
        one.on('error', () => other.destroy()).pipe(other);
    }).listen(0, '127.0.0.1');
    await once(front, 'listening');
    leads.set('upstream.test', () => (front.address() as AddressInfo).port);
    const place = await embeddedPlace();
    const control = flotilla(['control', '--port', '0', '--data-dir', place.data_dir], {
      ...environment(),
      FLOTILLA_ADMIN_KEY: plane.admin_key,
      NO_PROXY: 'direct.test',
    });
    programs.push(control);
    const url = await until(
      'it listens',
      () => /Listening at (http:[^ ]+)\./.exec(control.output())?.[1],
      30_000,
    );
    const send = async <T>(path: string, body: object) => {
      const headers = { authorization: `Bearer ${plane.admin_key}`, 'content-type': 'application/json' };
      const reply = await fetch(`${url}${path}`, { method: 'POST', headers, body: JSON.stringify(body) });
      return (await reply.json()) as T;
    };
    /** What a provider's first probe finds there. */
    const added = async (name: string, base_url: string) => {
      const { id } = await send<ProviderView>('/api/v1/providers', { name, base_url });
      return send<ProviderView>(`/api/v1/providers/${id}/probe`, {});
    };
    through();
    expect(await added('up', 'https://upstream.test/v1')).toMatchObject({ health: 'healthy', reason: null });
    await send('/api/v1/routes', { name: 'fast', targets: [{ provider: 'up', model: 'scripted' }] });
    const answer = await send('/v1/chat/completions', { model: 'fast', messages: [] });
    expect(JSON.stringify(answer)).toContain('through it all');
    expect(new Set(through())).toEqual(new Set(['upstream.test:443']));

    // On this machine, and where NO_PROXY says so, the proxy is not asked; nor does it lead everywhere.
    expect(await added('here', backend.url)).toMatchObject({ health: 'healthy' });
    expect(await added('direct', 'https://direct.test/v1')).toMatchObject({
      reason: expect.stringContaining('its host name'),
    });
    expect(through()).toEqual([]);
    const nowhere = { health: 'down', reason: expect.stringContaining('the proxy (HTTPS_PROXY)') };
    expect(await added('nowhere', 'https://nowhere.test/v1')).toMatchObject(nowhere);
    expect(new Set(through())).toEqual(new Set(['nowhere.test:443']));

    // Whom nobody here vouches for, and who is somebody else: neither is told the key.
    const stranger = await makeAuthority(await mkdtemp(join(dir, 'stranger-')));
    const own = { cert: stranger.pem, key: await readFile(stranger.path.replace('.pem', '.key'), 'utf8') };
    const served = createTlsServer(own).on('tlsClientError', () => undefined);
    const misnamed = createTlsServer(await authority.issue('elsewhere.test'));
    const at = async (server: typeof served) => {
      await once(server.listen(0, '127.0.0.1'), 'listening');
      return `https://127.0.0.1:${(server.address() as AddressInfo).port}/v1`;
    };
    for (const [name, server, says, told] of [
      [
        'self-signed',
        served,
        /is not trusted \(DEPTH_ZERO_SELF_SIGNED_CERT\).*NODE_EXTRA_CA_CERTS/,
        'is not trusted',
      ],
      ['misnamed', misnamed, /is for other names than that of its address/, 'is for another name'],
    ] as const) {
      const base_url = await at(server);
      expect(await added(name, base_url)).toMatchObject({
        health: 'down',
        reason: expect.stringMatching(says),
      });
      const { stdout } = await flotilla(['providers', 'show', name, '--url', url], environment()).ended;
      expect(stdout).toMatch(says);
      // Where no probe has found it out, a request does.
      await send('/api/v1/providers', { name: `${name}-unasked`, base_url, probe: 'none' });
      const alone = { name, targets: [{ provider: `${name}-unasked`, model: 'm' }] };
      await send('/api/v1/routes', alone);
      const failed = await send<ErrorBody>('/v1/chat/completions', { model: name, messages: [] });
      expect(failed.error).toMatchObject({
        code: 'attempts_exhausted',
        message: `The backend's certificate ${told}.`,
      });
      const backed = [...alone.targets, { provider: 'up', model: 'scripted' }];
      await send('/api/v1/routes', { name: `${name}-backed`, targets: backed });
      const body = { model: `${name}-backed`, messages: [] };
      expect(JSON.stringify(await send('/v1/chat/completions', body))).toContain('through it all');
    }
    await control.stop();
    for (const server of [front, served, misnamed]) server.close();
    await place.drop();
  }, 60_000);

  test('doctor looks whether a link gets through it', async () => {
    const nowhere = ['--data-dir', join(dir, 'none'), '--state-dir', join(dir, 'none')];
    const { stdout } = await start('doctor', '--json', '--url', address(), ...nowhere).ended;
    const { checks } = JSON.parse(stdout) as { checks: { name: string; state: string; found: string }[] };
    const of = (name: string) => checks.find((check) => check.name === name);
    expect(of('reachable')).toMatchObject({
      state: 'ok',
      found: expect.stringContaining('through 127.0.0.1'),
    });
    expect(of('WebSocket')).toMatchObject({ state: 'ok', found: expect.stringContaining('upgrades arrive') });
    expect(new Set(through())).toEqual(new Set([`fleet.test:${plane.control.port}`]));
  });

  test('NO_PROXY is heeded, and an authority that is not known is named', async () => {
    const own = await flotilla(['nodes', '--url', address()], {
      ...environment(),
      NO_PROXY: 'fleet.test',
    }).ended;
    expect(own.code).toBe(1);
    expect(through()).toEqual([]);
    const untrusting = { ...environment(), NODE_EXTRA_CA_CERTS: '' };
    const command = await flotilla(['nodes', '--url', address()], untrusting).ended;
    expect(command.code).toBe(1);
    expect(command.stderr).toContain('NODE_EXTRA_CA_CERTS');
    const join_args = ['join', address(), '--token', 'fle_x', '--state-dir', join(dir, 'other')];
    const joining = await flotilla(join_args, untrusting).ended;
    expect(joining.code).toBe(1);
    expect(joining.stderr).toContain('NODE_EXTRA_CA_CERTS');
  });
});
