import { createServer, type IncomingMessage, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';

/** A real HTTP server on loopback whose answers a test sets and changes, and which counts what it is asked. */
export interface FakeAnswer {
  status?: number;
  headers?: Record<string, string>;
  json?: unknown;
  text?: string;
  /** Do not answer at all. */
  hang?: boolean;
}
type Handler = (body: unknown, request: IncomingMessage) => FakeAnswer;

export class FakeServer {
  readonly asked: { method: string; path: string; body: unknown; headers: IncomingMessage['headers'] }[] = [];
  routes: Record<string, FakeAnswer | Handler> = {};
  fallback: FakeAnswer = { status: 404, json: { error: 'not here' } };
  #server: Server | null = null;
  #port = 0;

  get port(): number {
    return this.#port;
  }

  get url(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  count(path: string): number {
    return this.asked.filter((asked) => asked.path === path).length;
  }

  async start(): Promise<this> {
    const server = createServer((request, response) => {
      const chunks: Buffer[] = [];
      request.on('data', (chunk: Buffer) => chunks.push(chunk));
      request.on('end', () => {
        const path = request.url ?? '/';
        const text = Buffer.concat(chunks).toString();
        const body: unknown = text === '' ? undefined : JSON.parse(text);
        this.asked.push({ method: request.method ?? '', path, body, headers: request.headers });
        const route = this.routes[path] ?? this.fallback;
        const answer = typeof route === 'function' ? route(body, request) : route;
        if (answer.hang === true) return;
        response.writeHead(answer.status ?? 200, { 'content-type': 'application/json', ...answer.headers });
        response.end(answer.text ?? JSON.stringify(answer.json));
      });
    });
    await new Promise<void>((resolve) => server.listen(this.#port, '127.0.0.1', resolve));
    this.#port = (server.address() as AddressInfo).port;
    this.#server = server;
    return this;
  }

  /** As if its process were killed; `start()` brings it back on the same port. */
  async stop(): Promise<void> {
    const server = this.#server;
    this.#server = null;
    if (server === null) return;
    const closed = new Promise<void>((resolve) => server.close(() => resolve()));
    server.closeAllConnections();
    await closed;
  }
}

const answered: FakeAnswer = { json: { choices: [{ message: { content: 'x' } }] } };
export const embedded: FakeAnswer = { json: { data: [{ embedding: [0] }] } };

function list(entries: object[]): FakeAnswer {
  return { json: { object: 'list', data: entries.map((entry) => ({ object: 'model', ...entry })) } };
}

/** Any server with OpenAI's API. */
export function openaiRoutes(ids: string[]): FakeServer['routes'] {
  return {
    '/v1/models': list(ids.map((id) => ({ id, owned_by: 'somebody' }))),
    '/v1/chat/completions': answered,
    '/v1/completions': answered,
  };
}

export function llamaCppRoutes(id: string, slots = 2): FakeServer['routes'] {
  return {
    '/v1/models': {
      ...list([{ id, owned_by: 'llamacpp', meta: { n_ctx_train: 131072 } }]),
      headers: { server: 'llama.cpp' },
    },
    '/health': { json: { status: 'ok' } },
    '/props': {
      json: { total_slots: slots, default_generation_settings: { n_ctx: 8192 }, build_info: 'b6000-abc' },
    },
    '/v1/chat/completions': answered,
  };
}

export function vllmRoutes(id: string): FakeServer['routes'] {
  return {
    '/v1/models': list([{ id, owned_by: 'vllm', max_model_len: 32768 }]),
    '/version': { json: { version: '0.11.0' } },
    '/v1/chat/completions': answered,
  };
}

export function ollamaRoutes(
  models: Record<string, { loaded?: boolean; capabilities?: string[] }>,
): FakeServer['routes'] {
  const names = Object.keys(models);
  return {
    '/': { text: 'Ollama is running' },
    '/api/version': { json: { version: '0.12.3' } },
    '/api/tags': {
      json: { models: names.map((name) => ({ name, model: name, digest: `digest-${name}`, details: {} })) },
    },
    '/api/ps': {
      json: {
        models: names
          .filter((name) => models[name]?.loaded === true)
          .map((name) => ({ name, model: name, context_length: 4096 })),
      },
    },
    '/api/show': (body) => ({
      json: { capabilities: models[(body as { model: string }).model]?.capabilities ?? ['completion'] },
    }),
    '/v1/models': list(names.map((id) => ({ id, owned_by: 'library' }))),
    '/v1/chat/completions': answered,
    '/v1/embeddings': embedded,
  };
}

export function lmStudioRoutes(models: { id: string; type: string; state: string }[]): FakeServer {
  const server = new FakeServer();
  // Unknown paths are a success there, with an error inside.
  server.fallback = { json: { error: 'Unexpected endpoint or method.' } };
  server.routes = {
    '/v1/models': list(models.map(({ id }) => ({ id, owned_by: 'organization_owner' }))),
    '/api/v0/models': list(models.map((model) => ({ ...model, max_context_length: 32768 }))),
    '/v1/chat/completions': answered,
  };
  return server;
}
