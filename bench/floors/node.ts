import { Agent, request as ask } from 'node:http';
import { WebSocket } from 'ws';
import { frame, KIND, readFrame } from './frame.ts';

/** The node of the two-hop floor: asks the backend, and sends what it says as it comes. */
const backend = new URL(process.env['BACKEND_URL']!);
const agent = new Agent({ keepAlive: true, maxSockets: 2048 });
const socket = new WebSocket(process.env['GATEWAY_URL']!, { perMessageDeflate: false });
const NOTHING = Buffer.alloc(0);

socket.on('message', (data) => {
  const { id, payload } = readFrame(data as Buffer);
  const headers = { 'content-type': 'application/json', 'content-length': payload.length };
  const to = { agent, host: backend.hostname, port: backend.port, method: 'POST', headers };
  const forward = ask({ ...to, path: '/v1/chat/completions' }, (answer) => {
    const { 'content-type': type, 'content-length': length } = answer.headers;
    const head = { status: answer.statusCode, headers: { 'content-type': type, 'content-length': length } };
    send(id, KIND.head, Buffer.from(JSON.stringify(head)));
    answer.on('data', (piece: Buffer) => send(id, KIND.piece, piece));
    answer.on('end', () => send(id, KIND.end, NOTHING));
  });
  forward.on('error', () => {
    send(id, KIND.head, Buffer.from(JSON.stringify({ status: 502, headers: { 'content-length': '0' } })));
    send(id, KIND.end, NOTHING);
  });
  forward.end(payload);
});

function send(id: number, kind: number, payload: Buffer): void {
  socket.send(frame(id, kind, payload));
}
