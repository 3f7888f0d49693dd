import { errorOfResponse, FlotillaApiError } from './error.ts';
import { parseJson, printJson } from './exact-json.ts';
import { type Answer, type Body, PATHS, type Query, type RouteName } from './routes.ts';

export interface FlotillaOptions {
  /** Where the control plane is: `http://127.0.0.1:7400`. The empty string is the page's own origin, in a browser. */
  url: string;
  /** An API key. Absent in a browser that has a session cookie. */
  api_key?: string | undefined;
  /** Sent with every request. A function is asked each time. */
  headers?: Record<string, string> | (() => Record<string, string>);
  /** How long a call may take before it fails as `timed_out`. Inference has no such limit: the server has its own. */
  timeout_ms?: number;
  /** Instead of the global one: for a proxy, or a test. */
  fetch?: typeof globalThis.fetch;
}

export interface CallOptions {
  signal?: AbortSignal | undefined;
  headers?: Record<string, string>;
}

export interface CallInput<N extends RouteName> extends CallOptions {
  /** Stands for `:id` or `*` in the route's path. */
  id?: string;
  query?: Query<N>;
  body?: Body<N>;
  /** The body as the text of JSON, sent as it is. */
  text?: string;
}

const TIMEOUT_MS = 60_000;

/** One HTTP call at a time: address, credential and errors, for all resources. */
export class Transport {
  readonly #options: FlotillaOptions;
  readonly #base: string;

  constructor(options: FlotillaOptions) {
    if (options.url !== '' && !/^https?:\/\//.test(options.url)) {
      throw new TypeError(
        `The url of a control plane starts with http:// or https://; this is ${options.url}.`,
      );
    }
    this.#options = options;
    this.#base = options.url.replace(/\/+$/, '');
  }

  /** Calls a route and reads its JSON answer. */
  async call<N extends RouteName>(name: N, input: CallInput<N> = {}): Promise<Answer<N>> {
    return this.#inTime(input, async (signal) => {
      const response = await this.open(name, { ...input, signal });
      if (response.status === 204) return undefined as Answer<N>;
      return (await readJson(response, signal)) as Answer<N>;
    });
  }

  /** Calls a route and reads its answer as text, as it came. */
  async read(name: RouteName, input: CallInput<RouteName> = {}): Promise<string> {
    return this.#inTime(input, async (signal) =>
      readText(await this.open(name, { ...input, signal }), signal),
    );
  }

  /** Calls a route and hands back the answer as soon as its head is there. Every other status than 2xx throws. */
  async open<N extends RouteName>(name: N, input: CallInput<N> = {}): Promise<Response> {
    const { method, url } = this.#target(name, input);
    const headers = new Headers(this.#ownHeaders());
    for (const [field, value] of Object.entries(input.headers ?? {})) headers.set(field, value);
    const init: RequestInit = { method, headers, redirect: 'error' };
    if (input.signal) init.signal = input.signal;
    if (input.text !== undefined || input.body !== undefined) {
      headers.set('content-type', 'application/json');
      init.body = input.text ?? printJson(input.body);
    }
    const response = await this.#fetch(url, init);
    if (!response.ok) throw await errorOfResponse(response);
    return response;
  }

  async #inTime<T>(input: CallOptions, act: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const timeout = AbortSignal.timeout(this.#options.timeout_ms ?? TIMEOUT_MS);
    const signal = input.signal ? AbortSignal.any([input.signal, timeout]) : timeout;
    try {
      return await act(signal);
    } catch (error) {
      if (input.signal?.aborted === true || !timeout.aborted) throw error;
      throw new FlotillaApiError(`No answer from ${this.#address()} in time.`, {
        code: 'timed_out',
        cause: error,
      });
    }
  }

  #ownHeaders(): Record<string, string> {
    const { headers, api_key } = this.#options;
    const own = typeof headers === 'function' ? headers() : headers;
    return { ...(api_key === undefined ? {} : { authorization: `Bearer ${api_key}` }), ...own };
  }

  #target(
    name: RouteName,
    input: { id?: string; query?: object | undefined },
  ): { method: string; url: string } {
    const [method = 'GET', pattern = '/'] = PATHS[name].split(' ');
    const path = pattern.replace(/:id|\*/, (hole) => fill(hole, input.id));
    const query = new URLSearchParams();
    for (const [field, value] of Object.entries(input.query ?? {})) {
      if (value !== undefined) query.set(field, String(value));
    }
    const search = query.size > 0 ? `?${query.toString()}` : '';
    return { method, url: `${this.#base}${path}${search}` };
  }

  async #fetch(url: string, init: RequestInit): Promise<Response> {
    try {
      return await (this.#options.fetch ?? globalThis.fetch)(url, init);
    } catch (error) {
      if (init.signal?.aborted === true) throw error;
      const message = `${this.#address()} cannot be reached: ${rootCause(error)}`;
      throw new FlotillaApiError(message, { code: 'unreachable', cause: error });
    }
  }

  #address(): string {
    return this.#base === '' ? 'the server' : this.#base;
  }
}

function fill(hole: string, id: string | undefined): string {
  if (id === undefined || id === '') throw new TypeError('This call needs an id.');
  // A model's id may hold slashes (`org/model`); the route's `*` takes them as they are.
  return hole === '*' ? id.split('/').map(encodeURIComponent).join('/') : encodeURIComponent(id);
}

/** @param signal that of the call: an abort comes through as it is */
export async function readJson(response: Response, signal: AbortSignal | undefined): Promise<unknown> {
  const text = await readText(response, signal);
  try {
    return parseJson(text);
  } catch (cause) {
    throw new FlotillaApiError('The answer is not JSON.', {
      code: 'unreadable',
      status: response.status,
      request_id: response.headers.get('x-request-id') ?? undefined,
      cause,
    });
  }
}

async function readText(response: Response, signal: AbortSignal | undefined): Promise<string> {
  try {
    return await response.text();
  } catch (error) {
    if (signal?.aborted === true) throw error;
    throw new FlotillaApiError(`The connection broke before the end of the answer: ${rootCause(error)}`, {
      code: 'cut',
      request_id: response.headers.get('x-request-id') ?? undefined,
      cause: error,
    });
  }
}

/** `fetch failed` says nothing; the reason hides in its cause, sometimes one for each address tried. */
function rootCause(error: unknown): string {
  let reason: unknown = error;
  while (reason instanceof Error && reason.cause !== undefined) reason = reason.cause;
  if (reason instanceof AggregateError && reason.errors.length > 0) reason = reason.errors[0];
  return reason instanceof Error && reason.message !== '' ? reason.message.trim() : String(reason);
}
