import { once } from 'node:events';
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface Asked {
  at: string;
  body: unknown;
  authorization: string | undefined;
}

/** A small real server that answers as a control plane would. Routes are `GET /path`, without query. */
export class FakeControl {
  readonly asked: Asked[] = [];
  readonly #server = createServer((request, response) => {
    let text = '';
    request.setEncoding('utf8');
    request.on('data', (piece: string) => (text += piece));
    request.on('end', () => {
      const at = `${request.method} ${request.url}`;
      const body: unknown = text === '' ? undefined : JSON.parse(text);
      this.asked.push({ at, body, authorization: request.headers.authorization });
      this.#answer(at, body, response);
    });
  });
  readonly #routes: Record<string, unknown>;

  /** A function answers by itself; anything else is sent as JSON. */
  constructor(routes: Record<string, unknown>) {
    this.#routes = routes;
  }

  async listen(host = '127.0.0.1'): Promise<void> {
    this.#server.listen(0, host);
    await once(this.#server, 'listening');
  }

  close(): void {
    this.#server.closeAllConnections();
    this.#server.close();
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** What a command needs to reach it. */
  get environment(): Record<string, string> {
    return { FLOTILLA_URL: this.url, FLOTILLA_API_KEY: 'flk_test' };
  }

  #answer(at: string, body: unknown, response: ServerResponse): void {
    const route = this.#routes[at.replace(/\?.*$/, '')];
    if (typeof route === 'function') {
      (route as (response: ServerResponse, body: unknown) => void)(response, body);
      return;
    }
    const found = route !== undefined;
    const error = { message: `There is no ${at}.`, type: 'not_found_error', code: 'not_found', param: null };
    response.writeHead(found ? 200 : 404, { 'content-type': 'application/json', 'x-request-id': 'req_fake' });
    response.end(JSON.stringify(found ? route : { error }));
  }
}
