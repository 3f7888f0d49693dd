import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Duplex } from 'node:stream';
import { encodeFrame, FRAME_KIND, type NodeMessage, type NodeMessageOf } from '@flotilla/protocol';
import { type WebSocket, WebSocketServer } from 'ws';
import { until } from './until.ts';

/**
 * What a daemon takes for its control plane: it enrols anybody and takes every registration up, abandoning what comes
 * with it. All else is the test's to send.
 */
export interface ScriptedPlane {
  readonly url: string;
  /** Waits for the registration of this number, from 0 on. */
  registered(number: number): Promise<PlaneLink>;
  close(): Promise<void>;
}

export interface PlaneLink {
  readonly number: number;
  readonly ws: WebSocket;
  /** The id of the node's first backend. */
  readonly backend: string;
  readonly heard: NodeMessage[];
  /** Jobs that it said it had let go of, or did not know. */
  readonly released: Set<string>;
  /** Offers a sound job to the backend, with its body. @returns its stream */
  offer(job: string, body: object): number;
  /** Offers a sound job and waits for its result. @returns the body of its answer */
  ask(job: string, body: object): Promise<string>;
}

export async function startScriptedPlane(heartbeat_ms = 1000): Promise<ScriptedPlane> {
  const links: PlaneLink[] = [];
  const sockets = new WebSocketServer({ noServer: true, perMessageDeflate: false });
  const server = createServer((request, response) => {
    request.resume();
    response.writeHead(201, { 'content-type': 'application/json' });
    response.end(JSON.stringify({ id: 'node_1', name: 'box', credential: 'fln_scripted' }));
  });
  server.on('upgrade', (request, socket, head) => {
    sockets.handleUpgrade(request, socket, head, (ws) => {
      ws.on('error', () => undefined);
      ws.once('message', (data: Buffer) => {
        const registration = JSON.parse(data.toString()) as NodeMessageOf<'node.register'>;
        ws.send(JSON.stringify(registered(links.length, heartbeat_ms, registration.inventory)));
        links.push(openPlaneLink(links.length, ws, socket, registration));
      });
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    registered: (number) => until(`registration ${number}`, () => links[number], 30_000),
    async close() {
      for (const ws of sockets.clients) ws.terminate();
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

function registered(
  epoch: number,
  heartbeat_ms: number,
  inventory: NodeMessageOf<'node.register'>['inventory'],
): object {
  return {
    type: 'node.registered',
    node_id: 'node_1',
    name: 'box',
    epoch,
    server_time: new Date().toISOString(),
    heartbeat_ms,
    lease_ttl_ms: 3 * heartbeat_ms,
    protocol: 1,
    verdicts: inventory.map(({ job, attempt }) => ({ job, attempt, verdict: 'abandon' })),
  };
}

function openPlaneLink(
  number: number,
  ws: WebSocket,
  socket: Pick<Duplex, 'cork' | 'uncork'>,
  registration: NodeMessageOf<'node.register'>,
): PlaneLink {
  const heard: NodeMessage[] = [];
  const released = new Set<string>();
  const parts = new Map<number, Buffer[]>();
  const { backends } = registration.descriptor as { backends: { id: string }[] };
  ws.on('message', (data: Buffer, binary) => {
    if (binary) {
      if (data[0] !== FRAME_KIND.responseBody) return;
      const stream = data.readUInt32BE(1);
      parts.set(stream, [...(parts.get(stream) ?? []), data.subarray(13)]);
      return;
    }
    const message = JSON.parse(data.toString()) as NodeMessage;
    heard.push(message);
    if (message.type === 'job.completed' || message.type === 'job.failed') {
      const { job, attempt } = message;
      ws.send(JSON.stringify({ type: 'result.ack', job, attempt, outcome: 'accepted' }));
    }
    if (message.type === 'job.released') released.add(message.job);
    if (message.type === 'node.heartbeat') {
      const server_time = new Date().toISOString();
      ws.send(JSON.stringify({ type: 'node.heartbeat.ack', seq: message.seq, server_time, epoch: number }));
    }
  });
  const backend = backends[0]!.id;
  let next_stream = 900_000;
  const link: PlaneLink = {
    number,
    ws,
    backend,
    heard,
    released,
    offer(job, body) {
      const stream = next_stream++;
      const bytes = Buffer.from(JSON.stringify(body));
      // In one write, as a control plane does.
      socket.cork();
      ws.send(JSON.stringify(jobOffer(job, stream, backend, bytes.length)));
      ws.send(encodeFrame(FRAME_KIND.requestBody, stream, 0, bytes));
      ws.send(encodeFrame(FRAME_KIND.end, stream, bytes.length, Buffer.of(0)));
      socket.uncork();
      return stream;
    },
    async ask(job, body) {
      const stream = link.offer(job, body);
      await until('the answer is whole', () =>
        heard.some((message) => message.type === 'job.completed' && message.job === job),
      );
      return Buffer.concat(parts.get(stream) ?? []).toString();
    },
  };
  return link;
}

export function jobOffer(job: string, stream: number, backend: string, body_length: number): object {
  return {
    type: 'job.offer',
    job,
    attempt: 1,
    owner: 'rep_1',
    stream,
    kind: 'inference',
    operation: 'chat',
    backend,
    model: 'scripted',
    streaming: false,
    body_length,
    deadlines: { run_ms: 60_000, first_byte_ms: 30_000, idle_ms: 30_000 },
  };
}
