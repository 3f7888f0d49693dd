import { createServer, get } from 'node:http';
import type { AddressInfo } from 'node:net';

/**
 * A process of the bench is told what to do over HTTP: a path for each thing, answered with JSON once it is done, however
 * long that takes.
 */
export type Orders = Record<string, (given: URLSearchParams) => unknown>;

export function takeOrders(orders: Orders): void {
  const server = createServer((request, response) => {
    const { pathname, searchParams } = new URL(request.url!, 'http://here');
    Promise.resolve(searchParams)
      .then(orders[pathname.slice(1)])
      .then(
        (value) => response.end(JSON.stringify(value ?? null)),
        (error: unknown) => {
          response.statusCode = 500;
          response.end(error instanceof Error ? error.stack : String(error));
        },
      );
  });
  server.requestTimeout = 0;
  server.listen(0, '127.0.0.1', () => {
    process.stdout.write(`listening ${(server.address() as AddressInfo).port}\n`);
  });
}

/** @throws with what the process says, where it could not */
export function order<T>(port: number, path: string): Promise<T> {
  return new Promise((resolve, reject) => {
    const call = get({ host: '127.0.0.1', port, path: `/${path}`, agent: false }, (reply) => {
      let text = '';
      reply.setEncoding('utf8').on('data', (piece: string) => {
        text += piece;
      });
      reply.on('end', () => {
        if (reply.statusCode === 200) resolve(JSON.parse(text) as T);
        else reject(new Error(`${path}: ${text}`));
      });
    });
    call.on('error', reject);
  });
}

/** In ms, by the clock that all processes of a machine share. */
export function sharedNow_ms(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}
