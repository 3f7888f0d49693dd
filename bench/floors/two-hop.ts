import { createServer, type OutgoingHttpHeaders, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { WebSocketServer, type WebSocket } from 'ws';
import { frame, KIND, readFrame } from './frame.ts';
import { openRecorder } from './recorder.ts';

/**
 * The bare two-hop floor: a gateway to which a node has dialled out (floors/node.ts), frames between them, nothing checked
 * and nothing bounded. With RECORD_IN set it is the recording floor: it awaits one row for each request, in batches,
 * before it sends the last piece of the answer.
 */
interface Head {
  status: number;
  headers: OutgoingHttpHeaders;
}

interface Open {
  response: ServerResponse;
  /** The last piece so far, of an answer that is to be recorded. */
  held: Buffer | null;
}

const record = await openRecorder(process.env['RECORD_IN']);
const open = new Map<number, Open>();
let node: WebSocket | null = null;
let next = 0;

const server = createServer((request, response) => {
  const parts: Buffer[] = [];
  request.on('data', (part: Buffer) => void parts.push(part));
  request.on('end', () => {
    const id = ++next;
    open.set(id, { response, held: null });
    node!.send(frame(id, KIND.request, parts.length === 1 ? parts[0]! : Buffer.concat(parts)));
  });
});
const sockets = new WebSocketServer({ server, perMessageDeflate: false });
sockets.on('connection', (socket) => {
  node = socket;
  socket.on('message', (data) => take(data as Buffer));
  process.stdout.write('joined\n');
});
server.listen(0, '127.0.0.1', () => {
  process.stdout.write(`listening ${(server.address() as AddressInfo).port}\n`);
});

function take(data: Buffer): void {
  const { id, kind, payload } = readFrame(data);
  const one = open.get(id);
  if (one === undefined) return;
  const { response } = one;
  if (kind === KIND.head) {
    const { status, headers } = JSON.parse(payload.toString()) as Head;
    response.writeHead(status, headers);
  } else if (kind === KIND.end) {
    open.delete(id);
    end(one);
  } else if (record === null) response.write(payload);
  else {
    if (one.held !== null) response.write(one.held);
    one.held = payload;
  }
}

function end({ response, held }: Open): void {
  if (record === null) return void response.end();
  record({ id: crypto.randomUUID(), model: 'bench', status: 200, at: Date.now() }).then(
    () => response.end(held),
    () => response.destroy(),
  );
}
