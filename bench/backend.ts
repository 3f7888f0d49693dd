import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { sharedNow_ms } from './orders.ts';

/**
 * The model server of the bench, a process of its own: instant, with answers made of bytes once. Of a request it reads
 * whether it wants a stream, of how many `"events"`, how many of them a second (`"events_per_second"`; absent: at once), how
 * long it is to think first (`"think_ms"`), and its number (`"bench_n"`), whose time of arrival it keeps for `GET /arrivals`.
 */
const MODEL = 'bench';
const WHOLE = Buffer.from(
  JSON.stringify({
    id: 'chatcmpl-bench',
    object: 'chat.completion',
    created: 0,
    model: MODEL,
    choices: [
      {
        index: 0,
        message: { role: 'assistant', content: `${'An instant answer of the bench. '.repeat(8)}[DONE]` },
        finish_reason: 'stop',
      },
    ],
    usage: { prompt_tokens: 100, completion_tokens: 60, total_tokens: 160 },
  }),
);
const WHOLE_HEAD = ['content-type', 'application/json', 'content-length', String(WHOLE.length)];
const STREAM_HEAD = ['content-type', 'text/event-stream'];
const EVENT = Buffer.from(
  `data: ${JSON.stringify({
    id: 'chatcmpl-bench',
    object: 'chat.completion.chunk',
    created: 0,
    model: MODEL,
    choices: [{ index: 0, delta: { content: 'token' }, finish_reason: null }],
  })}\n\n`,
);
const LAST_EVENT = Buffer.from(
  `data: ${JSON.stringify({
    id: 'chatcmpl-bench',
    object: 'chat.completion.chunk',
    created: 0,
    model: MODEL,
    choices: [{ index: 0, delta: {}, finish_reason: 'stop' }],
    usage: { prompt_tokens: 100, completion_tokens: 60, total_tokens: 160 },
  })}\n\ndata: [DONE]\n\n`,
);
const MODELS = JSON.stringify({
  object: 'list',
  data: [{ id: MODEL, object: 'model', created: 0, owned_by: 'bench' }],
});

/** Number of the request and, in ms of the system's monotonic clock, when it was whole. */
let arrivals: [number, number][] = [];

const server = createServer({ keepAliveTimeout: 120_000 }, (request, response) => {
  if (request.method === 'GET') return tell(request, response);
  const parts: Buffer[] = [];
  request.on('data', (part: Buffer) => void parts.push(part));
  request.on('end', () => answer(parts.length === 1 ? parts[0]! : Buffer.concat(parts), response));
});
server.listen(Number(process.env['PORT'] ?? 0), '127.0.0.1', () => {
  process.stdout.write(`listening ${(server.address() as AddressInfo).port}\n`);
});

function tell(request: IncomingMessage, response: ServerResponse): void {
  response.writeHead(200, { 'content-type': 'application/json' });
  if (request.url !== '/arrivals') return void response.end(MODELS);
  response.end(JSON.stringify(arrivals));
  arrivals = [];
}

function answer(body: Buffer, response: ServerResponse): void {
  const n = numberIn(body, '"bench_n":');
  if (n !== null) arrivals.push([n, sharedNow_ms()]);
  const think_ms = numberIn(body, '"think_ms":');
  if (think_ms === null) tellAnswer(body, response);
  else setTimeout(() => tellAnswer(body, response), think_ms);
}

function tellAnswer(body: Buffer, response: ServerResponse): void {
  if (!body.includes('"stream":true')) {
    response.writeHead(200, WHOLE_HEAD);
    response.end(WHOLE);
    return;
  }
  const events = numberIn(body, '"events":') ?? 20;
  const per_second = numberIn(body, '"events_per_second":');
  response.writeHead(200, STREAM_HEAD);
  if (per_second === null) {
    // Each in a chunk of its own, as a model server sends them.
    for (let sent = 0; sent < events; sent++) response.write(EVENT);
    response.end(LAST_EVENT);
    return;
  }
  let sent = 0;
  const timer = setInterval(() => {
    if (sent++ < events) return void response.write(stamped());
    clearInterval(timer);
    response.end(LAST_EVENT);
  }, 1000 / per_second);
  response.on('close', () => clearInterval(timer));
}

/** An event with the time of its sending in it, by the system's monotonic clock. */
function stamped(): string {
  const at = sharedNow_ms().toFixed(3);
  return `data: {"object":"chat.completion.chunk","model":"${MODEL}","choices":[{"index":0,"delta":{"content":"token"},"finish_reason":null}],"at":"${at}"}\n\n`;
}

/** Without parsing the body, which may be large. */
function numberIn(body: Buffer, field: string): number | null {
  const at = body.indexOf(field);
  if (at === -1) return null;
  return Number.parseInt(body.subarray(at + field.length, at + field.length + 12).toString('latin1'), 10);
}
