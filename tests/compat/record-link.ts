import { once } from 'node:events';
import { mkdirSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { WebSocket, WebSocketServer } from 'ws';
import manifest from '../../packages/cli/package.json' with { type: 'json' };
import { until } from '../support/until.ts';
import { openWorld, type World } from '../support/world.ts';
import {
  answerAsAsked,
  type Line,
  lineOf,
  type Message,
  type Side,
  STEP_NAMES,
  STEPS,
  writeConversation,
} from './conversation.ts';
import { clientOf } from './world-client.ts';

/**
 * `node tests/compat/record-link.ts`: a daemon and a control plane of this version, real processes, with a hop between
 * them that writes down what they say, to `link/<major>.<minor>.jsonl`. Run once before each minor release, and never
 * again for that one.
 */
const lines: Line[] = [];
const world = await openWorld();
const hop = await startHop(world);
try {
  const backend = await world.backend(answerAsAsked);
  const node = await world.node({
    name: 'attic',
    backends: [{ url: backend.url, slots: 4 }],
    control_url: hop.url,
  });
  const client = clientOf(world, node.id, () => node.program().signal('SIGTERM'));
  for (const step of STEP_NAMES) {
    lines.push({ step });
    const outcome = await STEPS[step](client);
    await settled(step);
    lines.push({ step, outcome });
  }
  const path = join(
    import.meta.dirname,
    'link',
    `${manifest.version.split('.').slice(0, 2).join('.')}.jsonl`,
  );
  mkdirSync(join(path, '..'), { recursive: true });
  writeConversation(path, lines);
  process.stdout.write(`${path}\n`);
} finally {
  await world.close();
  await hop.close();
}

/** What the step leads to on the link has been said. */
async function settled(step: string): Promise<void> {
  if (step === 'cancelled') await until('it is released', () => said('node', 'job.released').length > 0);
  if (step === 'cordoned') {
    const wished = ({ desired }: Message) => (desired as { drain_ms?: number }).drain_ms !== undefined;
    await until('the node knows', () => said('control', 'node.heartbeat.ack').some(wished));
  }
}

function said(side: Side, type: string): Message[] {
  return lines.flatMap((line) =>
    'message' in line && line.from === side && line.message.type === type ? [line.message] : [],
  );
}

/** Passes everything on as it comes, and writes down what goes over the link. */
async function startHop({ plane }: World): Promise<{ url: string; close(): Promise<void> }> {
  const server = createServer((request, response) => {
    void (async () => {
      const parts: Buffer[] = [];
      for await (const part of request) parts.push(part as Buffer);
      const reply = await fetch(`${plane.url}${request.url}`, {
        method: request.method!,
        headers: { 'content-type': 'application/json' },
        body: Buffer.concat(parts),
      });
      response.writeHead(reply.status, { 'content-type': 'application/json' }).end(await reply.text());
    })();
  });
  const sockets = new WebSocketServer({ server, perMessageDeflate: false });
  sockets.on('connection', (near, { url, headers }) => {
    const { authorization = '' } = headers;
    const far = new WebSocket(`${plane.url.replace('http', 'ws')}${url}`, {
      headers: { authorization },
      perMessageDeflate: false,
    });
    const early: [Buffer, boolean][] = [];
    far.on('open', () => early.splice(0).forEach(([data, binary]) => far.send(data, { binary })));
    near.on('message', (data: Buffer, binary) => {
      write('node', data, binary);
      if (far.readyState === far.OPEN) far.send(data, { binary });
      else early.push([data, binary]);
    });
    far.on('message', (data: Buffer, binary) => {
      write('control', data, binary);
      near.send(data, { binary });
    });
    near.on('close', () => far.close());
    far.on('close', () => near.close());
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    close: async () => {
      for (const socket of sockets.clients) socket.terminate();
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

function write(from: Side, data: Buffer, binary: boolean): void {
  lines.push(binary ? lineOf(from, data) : { from, message: JSON.parse(data.toString()) as Message });
}
