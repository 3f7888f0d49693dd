import { Agent, createServer, request as ask } from 'node:http';
import type { AddressInfo } from 'node:net';

/**
 * The bare one-hop floor: the least that a proxy in Node can do, with node:http on both sides. No keys, no limits, no
 * records: what a gateway takes beyond it is the gateway's own.
 */
const backend = new URL(process.env['BACKEND_URL']!);
const agent = new Agent({ keepAlive: true, maxSockets: 1024 });

const server = createServer((request, response) => {
  const { method, url, headers } = request;
  const forward = ask(
    { agent, host: backend.hostname, port: backend.port, method, path: url, headers },
    (answer) => {
      response.writeHead(answer.statusCode!, answer.headers);
      answer.pipe(response);
    },
  );
  forward.on('error', () => response.destroy());
  request.pipe(forward);
});
server.listen(0, '127.0.0.1', () => {
  process.stdout.write(`listening ${(server.address() as AddressInfo).port}\n`);
});
