import { readFileSync, writeFileSync } from 'node:fs';
import { decodeFrame, encodeFrame, FRAME_KIND, type Frame } from '@flotilla/protocol';
import { chatAnswer, chatChunk, DONE, type Handler, SSE, USAGE_CHUNK } from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';

/**
 * What a node and a control plane of one release said to each other on the node link, line by line, while a client did
 * each of `STEPS`. Bodies lie in it as text: what the steps send is text.
 */
export type Line =
  | { from: Side; message: Message }
  | { from: Side; kind: number; stream: number; offset: number; payload: string }
  /** From here on the client does this … */
  | { step: StepName }
  /** … and this came of it. */
  | { step: StepName; outcome: unknown };
export type Side = 'node' | 'control';
export type Message = Record<string, unknown> & { type: string };

/** A binary frame as a line holds it, and back. */
export function lineOf(from: Side, data: Buffer): Line {
  const { kind, stream, offset, payload } = decodeFrame(data);
  const text = kind === FRAME_KIND.end ? String(payload[0]) : Buffer.from(payload).toString();
  return { from, kind, stream, offset, payload: text };
}
export function frameOf(line: { kind: number; offset: number; payload: string }, stream: number): Uint8Array {
  const payload = line.kind === FRAME_KIND.end ? Buffer.of(Number(line.payload)) : Buffer.from(line.payload);
  return encodeFrame(line.kind as Frame['kind'], stream, line.offset, payload);
}

export function readConversation(path: string): Line[] {
  const lines = readFileSync(path, 'utf8').trim().split('\n');
  return lines.map((line) => JSON.parse(line) as Line);
}
export function writeConversation(path: string, lines: Line[]): void {
  writeFileSync(path, `${lines.map((line) => JSON.stringify(line)).join('\n')}\n`);
}

/** The backend of the node that was recorded: the last message says how it answers. */
export const answerAsAsked: Handler = (request, response) => {
  const { messages } = JSON.parse(request.body.toString()) as { messages: { content: string }[] };
  switch (messages[0]?.content) {
    case 'refuse':
      response.writeHead(400, { 'content-type': 'application/json' });
      return void response.end('{"error":{"message":"no such thing","type":"invalid_request_error"}}');
    case 'fail':
      response.writeHead(500, { 'content-type': 'application/json' });
      return void response.end('{"error":{"message":"out of memory"}}');
    case 'stream':
      response.writeHead(200, SSE);
      return void response.end(chatChunk('Hel') + chatChunk('lo', 'stop') + USAGE_CHUNK + DONE);
    case 'hang':
      response.writeHead(200, SSE);
      return void response.write(chatChunk('Hel'));
    default:
      response.writeHead(200, { 'content-type': 'application/json' });
      return void response.end(chatAnswer('Hello'));
  }
};

export interface Client {
  chat: (body: Record<string, unknown>, init?: { signal?: AbortSignal }) => Promise<Response>;
  post: (path: string, body?: unknown) => Promise<Record<string, unknown>>;
  node_id: string;
  /** Stops the node's daemon in an orderly way; where it is played back, it stops by itself. */
  stopNode: () => void;
  nodeState: () => Promise<string>;
}

const ask = (content: string) => ({ messages: [{ role: 'user', content }] });

/** What the client does, in this order. What each returns is the same whoever plays the other parts. */
export const STEPS = {
  async whole({ chat }: Client) {
    const reply = await chat(ask('whole'));
    return [reply.status, await reply.text()];
  },
  async stream({ chat }: Client) {
    const reply = await chat({ ...ask('stream'), stream: true });
    return [reply.status, await reply.text()];
  },
  async refused({ chat }: Client) {
    const reply = await chat(ask('refuse'));
    return [reply.status, await reply.text()];
  },
  async failed({ chat }: Client) {
    const reply = await chat(ask('fail'));
    const { error } = (await reply.json()) as { error: { code: string } };
    return [reply.status, error.code];
  },
  async cancelled({ chat }: Client) {
    const gone = new AbortController();
    const reply = await chat({ ...ask('hang'), stream: true }, { signal: gone.signal });
    const { value } = await reply.body!.getReader().read();
    gone.abort();
    return [reply.status, Buffer.from(value!).toString()];
  },
  async cordoned({ post, node_id }: Client) {
    const { cordoned } = await post(`/api/v1/nodes/${node_id}/drain`, { deadline_ms: 60_000 });
    return cordoned;
  },
  async stopped({ stopNode, nodeState }: Client) {
    stopNode();
    return until('it is offline', async () => ((await nodeState()) === 'offline' ? 'offline' : undefined));
  },
} satisfies Record<string, (client: Client) => Promise<unknown>>;
export type StepName = keyof typeof STEPS;
export const STEP_NAMES = Object.keys(STEPS) as StepName[];
