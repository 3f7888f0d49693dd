import { errorOfEvent, FlotillaApiError } from './error.ts';
import type { Body } from './routes.ts';
import { readEvents, type SseEvent } from './sse.ts';
import { type CallOptions, readJson, type Transport } from './transport.ts';

/** OpenAI's shapes, as far as a caller here reads them; what a backend adds is still there at run time. */
export interface ChatMessage {
  role: string;
  content: string | null;
  tool_calls?: { id: string; type: string; function: { name: string; arguments: string } }[];
}
export interface ChatUsage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
}
export interface ChatCompletion {
  id: string;
  model: string;
  choices: { index: number; message: ChatMessage; finish_reason: string | null }[];
  usage?: ChatUsage;
}
export interface ChatChunk {
  id: string;
  model: string;
  choices: { index: number; delta: Partial<ChatMessage>; finish_reason: string | null }[];
  usage?: ChatUsage | null;
}

export type ChatRequest = Body<'chat'>;

export interface StreamOptions extends CallOptions {
  /** Told of each comment: what the server says while a request waits. */
  on_comment?: (text: string) => void;
}

export class Chat {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** Asks for one whole answer. */
  async create(body: ChatRequest, options: CallOptions = {}): Promise<ChatCompletion> {
    const response = await this.#transport.open('chat', { ...options, body: { ...body, stream: false } });
    return (await readJson(response, options.signal)) as ChatCompletion;
  }

  /** Asks for a streamed answer; resolves when its head is there. Errors before that throw here, later ones in the loop. */
  async stream(body: ChatRequest, options: StreamOptions = {}): Promise<ChatStream> {
    const response = await this.#transport.open('chat', { ...options, body: { ...body, stream: true } });
    return new ChatStream(response, options);
  }
}

/** A streamed answer: its chunks (`for await`), or with `events()` everything as it came. Read it once. */
export class ChatStream implements AsyncIterable<ChatChunk> {
  /** The raw answer: headers such as `x-flotilla-node`, and the body until it is read here. */
  readonly response: Response;
  readonly #options: StreamOptions;

  constructor(response: Response, options: StreamOptions = {}) {
    this.response = response;
    this.#options = options;
  }

  get request_id(): string | undefined {
    return this.response.headers.get('x-request-id') ?? undefined;
  }

  /** Each event and comment as it came, `[DONE]` and in-band errors included. A broken connection throws. */
  async *events(): AsyncGenerator<SseEvent, void> {
    if (this.response.body === null) return;
    try {
      yield* readEvents(this.response.body);
    } catch (error) {
      if (this.#options.signal?.aborted === true) throw error;
      throw this.#cut(error);
    }
  }

  /** The answer's chunks. It ends only after `[DONE]`; an answer that was cut throws. */
  async *[Symbol.asyncIterator](): AsyncIterator<ChatChunk> {
    for await (const { event, data } of this.events()) {
      if (event === 'comment') {
        this.#options.on_comment?.(data);
        continue;
      }
      if (data === '[DONE]') return;
      yield this.#chunk(data);
    }
    throw this.#cut();
  }

  #chunk(data: string): ChatChunk {
    let value: unknown;
    try {
      value = JSON.parse(data);
    } catch (cause) {
      throw new FlotillaApiError('An event of the stream is not JSON.', {
        code: 'unreadable',
        request_id: this.request_id,
        cause,
      });
    }
    const error = errorOfEvent(value, this.request_id);
    if (error) throw error;
    return value as ChatChunk;
  }

  #cut(cause?: unknown): FlotillaApiError {
    const message = 'The stream ended before its [DONE]: the answer is not whole.';
    return new FlotillaApiError(message, { code: 'cut', request_id: this.request_id, cause });
  }
}
