import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

/**
 * The daemon's window for this machine: read-only, on loopback only. A web page in the owner's browser can send
 * requests here too, under a name of its own that points to 127.0.0.1 (DNS rebinding); the `Host` header betrays it.
 */
export interface StatusSource {
  ready(): { ready: boolean; reasons: string[] };
  status(): Record<string, unknown>;
  metrics(): Promise<{ type: string; body: string }>;
}

export interface StatusServer {
  port: number;
  close(): Promise<void>;
}

type Answer = { status: number; type: string; body: string };

/** Listens at `port`, or at a free one when that is taken. */
export async function openStatusServer(port: number, source: StatusSource): Promise<StatusServer> {
  const server = createServer((request, response) => {
    answer(request, source).then(
      (result) => send(request, response, result),
      () => send(request, response, json(500, { error: 'The status could not be read.' })),
    );
  });
  // Nothing that is sent here has a body, and a status is read in one go.
  server.requestTimeout = 10_000;
  server.headersTimeout = 5_000;
  try {
    await listen(server, port);
  } catch (error) {
    if (!['EADDRINUSE', 'EACCES'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
    await listen(server, 0);
  }
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

function listen(server: Server, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, '127.0.0.1', () => {
      server.off('error', reject);
      resolve();
    });
  });
}

async function answer(request: IncomingMessage, source: StatusSource): Promise<Answer> {
  if (!isLoopbackName(request.headers.host)) {
    return json(403, { error: 'This address answers only to the names localhost, 127.0.0.1 and [::1].' });
  }
  if (request.method !== 'GET' && request.method !== 'HEAD')
    return json(405, { error: 'Read-only: GET or HEAD.' });
  switch (new URL(request.url ?? '/', 'http://localhost').pathname) {
    case '/healthz':
      return json(200, { status: 'ok' });
    case '/readyz': {
      const { ready, reasons } = source.ready();
      return json(ready ? 200 : 503, { status: ready ? 'ready' : 'not ready', reasons });
    }
    case '/status':
      return json(200, source.status());
    case '/metrics':
      return { status: 200, ...(await source.metrics()) };
    default:
      return json(404, { error: 'Here are /healthz, /readyz, /status and /metrics.' });
  }
}

function isLoopbackName(host: string | undefined): boolean {
  if (host === undefined || !URL.canParse(`http://${host}`)) return false;
  return ['localhost', '127.0.0.1', '[::1]'].includes(new URL(`http://${host}`).hostname);
}

function json(status: number, value: unknown): Answer {
  return { status, type: 'application/json', body: `${JSON.stringify(value, null, 2)}\n` };
}

function send(request: IncomingMessage, response: ServerResponse, { status, type, body }: Answer): void {
  response.writeHead(status, {
    'content-type': type,
    'content-length': Buffer.byteLength(body),
    'cache-control': 'no-store',
    'x-content-type-options': 'nosniff',
  });
  response.end(request.method === 'HEAD' ? undefined : body);
}
