import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { parseRequest, readBody } from './body.ts';
import { deliver, type Pace } from './deliver.ts';
import { FaultPlan, type PlannedFault, spoil } from './fault.ts';
import { answerInstantly, type InstantAnswers, instantAnswers } from './instant.ts';
import { OPERATION_PATHS, type Operation, respond } from './respond.ts';
import { errorScript, jsonScript, type Script } from './script.ts';
import { Slots } from './slots.ts';
import { type RequestRecord, Stats } from './stats.ts';
import { readFaultChange } from './switch.ts';

export interface SimOptions {
  host: string;
  /** 0: any free one. */
  port: number;
  models: string[];
  ttft_ms: number;
  /** Infinite: all tokens at once. */
  tokens_per_second: number;
  /** Requests worked on at once; infinite unless given. */
  slots: number;
  api_key?: string | undefined;
  /** The least length of a text answer. */
  answer_tokens: number;
  /** The same small bytes for every request, computed once: for benchmarks of what lies in front. */
  instant: boolean;
  faults: PlannedFault[];
}

const DEFAULTS: SimOptions = {
  host: '127.0.0.1',
  port: 0,
  models: ['flotilla-sim'],
  ttft_ms: 0,
  tokens_per_second: Number.POSITIVE_INFINITY,
  slots: Number.POSITIVE_INFINITY,
  answer_tokens: 0,
  instant: false,
  faults: [],
};

const UNAUTHORIZED = errorScript(
  401,
  'authentication_error',
  'invalid_api_key',
  'The API key is not the right one.',
);

/** A simulated OpenAI-compatible server. It keeps nothing of what it is asked. */
export class SimBackend {
  readonly #options: SimOptions;
  readonly #pace: Pace;
  readonly #server: Server;
  readonly #slots: Slots;
  readonly #stats = new Stats();
  readonly #faults = new FaultPlan();
  readonly #instant: InstantAnswers;
  #port = 0;
  #serial = 0;
  #faultsEnd: NodeJS.Timeout | undefined;

  constructor(options: Partial<SimOptions> = {}) {
    this.#options = { ...DEFAULTS, ...options };
    this.#pace = { ttft_ms: this.#options.ttft_ms, token_ms: 1000 / this.#options.tokens_per_second };
    this.#slots = new Slots(this.#options.slots);
    this.#instant = instantAnswers(this.#options.models[0] ?? 'flotilla-sim');
    this.#faults.set(this.#options.faults);
    this.#server = createServer((request, response) => {
      if (!this.#serveInstantly(request, response)) void this.#serve(request, response);
    });
    // A client that keeps a connection for reuse must not meet one that is being closed.
    this.#server.keepAliveTimeout = 120_000;
    this.#server.on('connection', (socket) => {
      if (this.#faults.current?.name !== 'refuse') return;
      this.#faults.take();
      socket.resetAndDestroy();
    });
  }

  get url(): string {
    const { host } = this.#options;
    return `http://${host.includes(':') ? `[${host}]` : host}:${this.#port}`;
  }

  async listen(): Promise<void> {
    this.#server.listen(this.#port || this.#options.port, this.#options.host);
    await once(this.#server, 'listening');
    this.#port = (this.#server.address() as AddressInfo).port;
    if (this.#refuses()) this.#stopListening();
  }

  async close(): Promise<void> {
    clearTimeout(this.#faultsEnd);
    if (!this.#server.listening) return;
    this.#stopListening();
    await once(this.#server, 'close');
  }

  /**
   * Replaces the faults.
   * @param for_ms after this time they end, whatever is left of them
   */
  setFaults(faults: PlannedFault[], for_ms?: number): void {
    this.#faults.set(faults);
    clearTimeout(this.#faultsEnd);
    if (for_ms !== undefined) this.#faultsEnd = setTimeout(() => this.setFaults([]), for_ms);
    if (this.#refuses()) this.#stopListening();
    else if (!this.#server.listening && this.#port !== 0) void this.listen();
  }

  /** A closed port cannot count: only `refuse` without a count closes it. */
  #refuses(): boolean {
    const { current } = this.#faults;
    return current?.name === 'refuse' && !Number.isFinite(current.left);
  }

  #stopListening(): void {
    if (!this.#server.listening) return;
    this.#server.close();
    this.#server.closeAllConnections();
  }

  /** The short way: no promise, no record. @returns whether the request takes it */
  #serveInstantly(request: IncomingMessage, response: ServerResponse): boolean {
    if (!this.#options.instant || request.method !== 'POST' || this.#faults.current !== undefined)
      return false;
    const operation = OPERATION_PATHS[request.url ?? ''];
    if (operation === undefined || !this.#authorized(request)) return false;
    answerInstantly(request, response, this.#instant[operation]);
    this.#stats.count(operation);
    this.#stats.end('served');
    return true;
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = (request.url ?? '/').split('?', 1)[0] ?? '/';
    const operation = request.method === 'POST' ? OPERATION_PATHS[path] : undefined;
    const body = await readBody(request);
    if (body === undefined) return;
    const own = this.#control(`${request.method} ${path}`, body, response);
    if (own !== undefined) return send(response, own);
    if (!this.#authorized(request)) return send(response, UNAUTHORIZED);
    if (operation === undefined) return send(response, this.#models(`${request.method} ${path}`));
    await this.#infer(operation, body, request, response);
  }

  /** The simulation's own routes, which need no key and know no fault but `refuse`. */
  #control(at: string, body: Buffer, response: ServerResponse): Script | undefined {
    switch (at) {
      case 'DELETE /sim/stats':
        this.#stats.reset();
        return jsonScript(200, this.#stats.view(this.#slots.waiting));
      case 'GET /sim/stats':
        return jsonScript(200, this.#stats.view(this.#slots.waiting));
      case 'GET /sim/fault':
        return jsonScript(200, { faults: this.#faults.view() });
      case 'POST /sim/fault':
        return this.#switchFault(body, response);
      default:
        return undefined;
    }
  }

  #switchFault(body: Buffer, response: ServerResponse): Script {
    const change = readFaultChange(body);
    if (typeof change === 'string') {
      return errorScript(400, 'invalid_request_error', 'invalid_request', change);
    }
    if (change.faults[0]?.name !== 'refuse') {
      this.setFaults(change.faults, change.for_ms);
      return jsonScript(200, { faults: this.#faults.view() });
    }
    // Answered first: refusing closes the connection that asked for it, too.
    response.on('close', () => this.setFaults(change.faults, change.for_ms));
    return jsonScript(200, { faults: [{ name: 'refuse' }] }, 0, { connection: 'close' });
  }

  #models(at: string): Script {
    const { models } = this.#options;
    if (at === 'GET /v1/models') {
      this.#stats.countModelList();
      return jsonScript(200, { object: 'list', data: models.map(modelView) });
    }
    const model = models.find(
      (id) => at === `GET /v1/models/${encodeURIComponent(id)}` || at === `GET /v1/models/${id}`,
    );
    if (model !== undefined) return jsonScript(200, modelView(model));
    return errorScript(404, 'not_found_error', 'not_found', `There is no ${at} here.`);
  }

  async #infer(
    operation: Operation,
    body: Buffer,
    request: IncomingMessage,
    response: ServerResponse,
  ): Promise<void> {
    const asked = parseRequest(body);
    const record = this.#record(operation, asked, request);
    const begun_ms = performance.now();
    const since = () => Math.round((performance.now() - begun_ms) * 10) / 10;
    this.#stats.begin(record);
    const left = new AbortController();
    response.on('close', () => left.abort(new Error('The client left.')));

    const entered = await this.#slots.take(left.signal);
    record.waited_ms = since();
    if (entered) this.#stats.enter();
    try {
      left.signal.throwIfAborted();
      const fault = this.#faults.take();
      const right = respond(operation, asked, record.id, this.#options);
      const script = fault === undefined ? right : spoil(right, fault);
      record.fault = fault ?? null;
      record.status = script.head?.status ?? null;
      await deliver(response, script, this.#pace, left.signal, () => {
        record.first_byte_ms = since();
      });
      record.outcome = fault ? 'faulted' : record.status === 200 ? 'served' : 'refused';
    } catch (error) {
      if (!left.signal.aborted) throw error;
      record.outcome = 'aborted';
    } finally {
      if (entered) {
        this.#stats.leave();
        this.#slots.release();
      }
      record.total_ms = since();
      record.ended_at = new Date().toISOString();
      if (record.outcome) this.#stats.end(record.outcome);
    }
  }

  #record(
    operation: Operation,
    asked: Record<string, unknown> | undefined,
    request: IncomingMessage,
  ): RequestRecord {
    const request_id = request.headers['x-request-id'];
    const model = asked?.['model'];
    return {
      id: `${operation}-sim-${++this.#serial}`,
      operation,
      model: typeof model === 'string' ? model : '',
      streaming: asked?.['stream'] === true,
      request_id: typeof request_id === 'string' ? request_id : null,
      fault: null,
      outcome: null,
      status: null,
      started_at: new Date().toISOString(),
      ended_at: null,
      waited_ms: 0,
      first_byte_ms: null,
      total_ms: null,
    };
  }

  #authorized(request: IncomingMessage): boolean {
    const { api_key } = this.#options;
    return api_key === undefined || request.headers.authorization === `Bearer ${api_key}`;
  }
}

function send(response: ServerResponse, script: Script): void {
  response.writeHead(script.head?.status ?? 500, script.head?.headers);
  response.end(script.pieces.map(({ text }) => text).join(''));
}

function modelView(id: string): object {
  return { id, object: 'model', created: 0, owned_by: 'flotilla-sim' };
}
