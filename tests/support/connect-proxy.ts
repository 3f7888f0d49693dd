import { once } from 'node:events';
import { createServer } from 'node:http';
import { type AddressInfo, connect, type Socket } from 'node:net';

/** A company's way out: an HTTP proxy that passes on by CONNECT, and alone knows where a name is. */
export interface ConnectProxy {
  readonly url: string;
  /** Every `host:port` that was asked for, in order. */
  readonly asked: string[];
  close(): Promise<void>;
}

/** @param portOf where each name leads to, on this machine; undefined: nowhere */
export async function startConnectProxy(portOf: (name: string) => number | undefined): Promise<ConnectProxy> {
  const asked: string[] = [];
  const sockets = new Set<Socket>();
  const keep = (socket: Socket) => {
    sockets.add(socket);
    socket.on('error', () => socket.destroy()).on('close', () => sockets.delete(socket));
  };
  const server = createServer((request, response) => {
    asked.push(`${request.method} ${request.url}`);
    response.writeHead(502).end();
  });
  server.on('connection', keep);
  server.on('connect', (request, near: Socket) => {
    asked.push(request.url ?? '');
    const port = portOf((request.url ?? '').replace(/:\d+$/, ''));
    if (port === undefined) return near.end('HTTP/1.1 403 Forbidden\r\n\r\n');
    const far = connect({ host: '127.0.0.1', port });
    keep(far);
    far.once('connect', () => {
      near.write('HTTP/1.1 200 Connection established\r\n\r\n');
      near.pipe(far).pipe(near);
    });
    far.on('close', () => near.destroy());
    near.on('close', () => far.destroy());
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    asked,
    async close() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}
