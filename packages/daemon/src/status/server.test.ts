import { request as httpRequest } from 'node:http';
import { expect, onTestFinished, test } from 'vitest';
import { FakeServer } from '../testing/fake-servers.ts';
import { openStatusServer, type StatusServer } from './server.ts';

const source = {
  ready: () => ({ ready: false, reasons: ['Every backend is down.'] }),
  status: () => ({ name: 'box' }),
  metrics: () => Promise.resolve({ type: 'text/plain', body: 'flotilla_node_link_up 1\n' }),
};

async function open(port = 0): Promise<StatusServer> {
  const server = await openStatusServer(port, source);
  onTestFinished(() => server.close());
  return server;
}

function ask(port: number, path: string, options: { host?: string; method?: string } = {}) {
  return new Promise<{ status: number; body: string }>((resolve, reject) => {
    const headers = options.host === undefined ? {} : { host: options.host };
    const request = httpRequest(
      { host: '127.0.0.1', port, path, method: options.method ?? 'GET', headers },
      (response) => {
        let body = '';
        response.setEncoding('utf8').on('data', (chunk: string) => (body += chunk));
        response.on('end', () => resolve({ status: response.statusCode ?? 0, body }));
      },
    );
    request.on('error', reject).end();
  });
}

test('it tells life, readiness with reasons, status and metrics', async () => {
  const { port } = await open();
  expect(await ask(port, '/healthz')).toMatchObject({ status: 200 });
  const ready = await ask(port, '/readyz');
  expect([ready.status, JSON.parse(ready.body)]).toEqual([
    503,
    { status: 'not ready', reasons: ['Every backend is down.'] },
  ]);
  expect(JSON.parse((await ask(port, '/status')).body)).toEqual({ name: 'box' });
  expect((await ask(port, '/metrics')).body).toContain('flotilla_node_link_up 1');
  expect(await ask(port, '/other')).toMatchObject({ status: 404 });
});

test.each([
  'evil.example',
  'evil.example:7401',
  '127.0.0.1.evil.example',
  'localhost.evil.example',
  '10.0.0.1',
])('a page whose name %j leads here (DNS rebinding) is refused', async (host) => {
  const { port } = await open();
  expect((await ask(port, '/status', { host })).status).toBe(403);
});

test.each(['localhost', 'localhost:9999', '127.0.0.1:1', '[::1]:7401'])(
  '%s is this machine',
  async (host) => {
    const { port } = await open();
    expect((await ask(port, '/status', { host })).status).toBe(200);
  },
);

test('it is read-only', async () => {
  const { port } = await open();
  for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS']) {
    expect((await ask(port, '/status', { method })).status).toBe(405);
  }
  expect(await ask(port, '/status', { method: 'HEAD' })).toEqual({ status: 200, body: '' });
});

test('a taken port is no reason not to start: it really listens at a free one', async () => {
  const other = await new FakeServer().start();
  onTestFinished(() => other.stop());
  const { port } = await open(other.port);
  expect(port).not.toBe(other.port);
  expect((await ask(port, '/healthz')).status).toBe(200);
});
