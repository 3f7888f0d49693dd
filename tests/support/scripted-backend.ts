import { once } from 'node:events';
import { type IncomingMessage, type ServerResponse, createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

/** An OpenAI-compatible server whose every answer the test writes itself, byte by byte. */
export interface ScriptedBackend {
  readonly url: string;
  readonly port: number;
  /** Inference requests it has seen, with their bodies as they came. */
  readonly requests: SeenRequest[];
  /** How many are being answered now, and were at once at the most. */
  in_flight: number;
  most_in_flight: number;
  /** What answers from now on. */
  answer: Handler;
  /** When it was asked for its models. */
  readonly listed_ms: number[];
  /** Answers that question instead of the list; null: the list. */
  answer_list: ((response: ServerResponse) => void) | null;
  /** As if its process had ended: connections are reset, new ones refused. */
  stop(): Promise<void>;
  /** At the same port again. */
  start(): Promise<void>;
  close(): Promise<void>;
}

export interface SeenRequest {
  path: string;
  headers: IncomingMessage['headers'];
  body: Buffer;
  began_ms: number;
  ended_ms: number | null;
  /** The gateway's side closed it before the answer was whole. */
  aborted_ms: number | null;
}
export type Handler = (request: SeenRequest, response: ServerResponse) => void | Promise<void>;

export async function startScriptedBackend(answer: Handler, models = ['scripted']): Promise<ScriptedBackend> {
  const server = createServer((request, response) => void serve(request, response));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const backend: ScriptedBackend = {
    url: `http://127.0.0.1:${port}/v1`,
    port,
    requests: [],
    in_flight: 0,
    most_in_flight: 0,
    answer,
    listed_ms: [],
    answer_list: null,
    async stop() {
      if (!server.listening) return;
      server.close();
      server.closeAllConnections();
      await once(server, 'close');
    },
    async start() {
      server.listen(port, '127.0.0.1');
      await once(server, 'listening');
    },
    close: () => backend.stop(),
  };
  return backend;

  async function serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (request.method === 'GET') {
      if (request.url === '/v1/models') {
        backend.listed_ms.push(performance.now());
        if (backend.answer_list !== null) return backend.answer_list(response);
      }
      const data = models.map((id) => ({ id, object: 'model', created: 0, owned_by: 'test' }));
      response.setHeader('content-type', 'application/json');
      response.statusCode = request.url === '/v1/models' ? 200 : 404;
      response.end(JSON.stringify(request.url === '/v1/models' ? { object: 'list', data } : { error: 'no' }));
      return;
    }
    const parts: Buffer[] = [];
    for await (const part of request) parts.push(part as Buffer);
    const seen: SeenRequest = {
      path: request.url ?? '',
      headers: request.headers,
      body: Buffer.concat(parts),
      began_ms: performance.now(),
      ended_ms: null,
      aborted_ms: null,
    };
    backend.requests.push(seen);
    backend.most_in_flight = Math.max(backend.most_in_flight, ++backend.in_flight);
    response.on('close', () => {
      backend.in_flight--;
      seen.ended_ms = performance.now();
      if (!response.writableFinished) seen.aborted_ms = seen.ended_ms;
    });
    await backend.answer(seen, response);
  }
}

/** A whole chat answer with this text. */
export function chatAnswer(text: string, model = 'scripted'): string {
  return JSON.stringify({
    id: 'chatcmpl-test',
    object: 'chat.completion',
    created: 1,
    model,
    choices: [{ index: 0, message: { role: 'assistant', content: text }, finish_reason: 'stop' }],
    usage: { prompt_tokens: 3, completion_tokens: 5, total_tokens: 8 },
  });
}

/** One event of a chat stream with this piece of text. */
export function chatChunk(text: string, finish_reason: string | null = null): string {
  return `data: ${JSON.stringify({
    id: 'chatcmpl-test',
    object: 'chat.completion.chunk',
    created: 1,
    model: 'scripted',
    choices: [{ index: 0, delta: { content: text }, finish_reason }],
  })}\n\n`;
}

export const USAGE_CHUNK =
  'data: {"id":"chatcmpl-test","object":"chat.completion.chunk","created":1,"model":"scripted","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}}\n\n';
export const DONE = 'data: [DONE]\n\n';
export const SSE = { 'content-type': 'text/event-stream' };
