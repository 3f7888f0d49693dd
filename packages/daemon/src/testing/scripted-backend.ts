import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface BackendRequest {
  path: string;
  headers: IncomingMessage['headers'];
  body: string;
  response: ServerResponse;
  /** The client's connection is gone before the answer was whole. */
  aborted: boolean;
}

/** A real HTTP server that answers as the test says, and remembers what it was asked. */
export class ScriptedBackend {
  readonly requests: BackendRequest[] = [];
  answer: (request: BackendRequest) => void = ({ response }) => {
    response.setHeader('content-type', 'application/json');
    response.end(
      '{"choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":3,"completion_tokens":1}}',
    );
  };
  /** Called whenever something happens here. */
  changed: () => void = () => undefined;
  readonly #server: Server = createServer((request, response) => {
    const pieces: Buffer[] = [];
    request.on('data', (piece: Buffer) => pieces.push(piece));
    request.on('end', () => {
      const entry: BackendRequest = {
        path: request.url ?? '',
        headers: request.headers,
        body: Buffer.concat(pieces).toString(),
        response,
        aborted: false,
      };
      response.on('close', () => {
        entry.aborted = !response.writableFinished;
        this.changed();
      });
      this.requests.push(entry);
      this.answer(entry);
      this.changed();
    });
  });

  async listen(): Promise<void> {
    this.#server.keepAliveTimeout = 60_000;
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve));
  }

  get base_url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}/v1`;
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

export function sse(...events: unknown[]): string {
  return events
    .map((event) => `data: ${typeof event === 'string' ? event : JSON.stringify(event)}\n\n`)
    .join('');
}

export const delta = (content: string, finish_reason: string | null = null) => ({
  choices: [{ index: 0, delta: { content }, finish_reason }],
});
