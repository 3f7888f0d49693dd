import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { decodeFrame, FRAME_KIND, type Frame } from '@flotilla/protocol';
import { type WebSocket, WebSocketServer } from 'ws';
import { until } from '../support/until.ts';
import { frameOf, type Line, type Message } from './conversation.ts';
import { assertAlike, unlike } from './likeness.ts';

/** Said when time has come; or, `job.accepted`, only when a request's body is not whole yet. */
const BACKGROUND = new Set([
  'node.heartbeat',
  'node.heartbeat.ack',
  'stream.credit',
  'link.ack',
  'job.accepted',
]);

/**
 * The control plane of a recorded conversation, on a real socket that today's daemon dials. It says what was recorded,
 * at the point where it was recorded, and expects there what it was told then. Beats it answers as they come.
 */
export class PlayedControl {
  readonly url: string;
  readonly close: () => Promise<void>;
  readonly #known: Set<string>;
  readonly #as: (message: Message) => Message;
  readonly #heard: Message[] = [];
  readonly #frames: Frame[] = [];
  readonly #bodies = new Map<number, string>();
  #socket: WebSocket | undefined;
  #ack: Message;
  #next_message = 0;

  private constructor(
    server: ReturnType<typeof createServer>,
    lines: Line[],
    as: (message: Message) => Message,
  ) {
    this.#as = as;
    const messages = lines.flatMap((line) => ('message' in line ? [line] : []));
    this.#known = new Set(messages.filter(({ from }) => from === 'node').map(({ message }) => message.type));
    this.#ack = messages.find(({ message }) => message.type === 'node.heartbeat.ack')!.message;
    const sockets = new WebSocketServer({ server, perMessageDeflate: false });
    sockets.on('connection', (socket) => {
      this.#socket = socket;
      socket.on('message', (data: Buffer, binary) => {
        if (binary) this.#frames.push(decodeFrame(data));
        else this.#hearNow(JSON.parse(data.toString()) as Message);
      });
    });
    this.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    this.close = async () => {
      for (const socket of sockets.clients) socket.terminate();
      server.close();
      await once(server, 'close');
    };
  }

  static async open(lines: Line[], as: (message: Message) => Message): Promise<PlayedControl> {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    return new PlayedControl(server, lines, as);
  }

  /** What it was answered with `error`, by the ids of what it had said. */
  get refused(): unknown[] {
    return this.#heard.filter(({ type }) => type === 'error').map(({ id }) => id);
  }

  send(message: Message): void {
    this.#socket?.send(JSON.stringify(this.#as(message)));
  }

  /** One line of the link. */
  async play(line: Exclude<Line, { step: unknown }>): Promise<void> {
    if (line.from === 'control') {
      if (!('message' in line)) this.#socket?.send(frameOf(line, line.stream));
      else if (line.message.type === 'node.heartbeat.ack') this.#ack = line.message;
      else this.send(line.message);
      return;
    }
    return 'message' in line ? this.#hear(line.message) : this.#receive(line);
  }

  #hearNow(message: Message): void {
    this.#heard.push(message);
    if (message.type === 'node.heartbeat') this.send({ ...this.#ack, seq: message['seq'] });
  }

  async #hear(recorded: Message): Promise<void> {
    if (recorded.type === 'node.heartbeat') {
      const { draining } = recorded;
      await until('a beat is heard as it was', () =>
        this.#heard.some(
          (today) =>
            today.type === 'node.heartbeat' &&
            unlike({ ...recorded, host: {} }, today).length === 0 &&
            today['draining'] === draining,
        ),
      );
      return;
    }
    if (BACKGROUND.has(recorded.type)) return;
    // The first thing that it says comes after the start of a daemon and its thread.
    const within_ms = recorded.type === 'node.register' ? 60_000 : undefined;
    const today = await until(`${recorded.type} is heard`, () => this.#next(), within_ms);
    assertAlike(recorded, today);
  }

  /** The next message in turn; those that the control plane of then does not know it answers, and goes on. */
  #next(): Message | undefined {
    while (this.#next_message < this.#heard.length) {
      const message = this.#heard[this.#next_message++]!;
      if (BACKGROUND.has(message.type) || message.type === 'error') continue;
      if (this.#known.has(message.type)) return message;
      const { id } = message;
      this.send({
        type: 'error',
        id,
        code: 'invalid_request',
        message: `Unknown message type ${message.type}.`,
      });
    }
    return undefined;
  }

  /** An answer's body comes in whatever pieces; so far it is the one that was recorded. */
  async #receive({
    kind,
    stream,
    payload,
  }: {
    kind: number;
    stream: number;
    payload: string;
  }): Promise<void> {
    const own = () => this.#frames.filter((frame) => frame.stream === stream);
    const text = (of: number) =>
      Buffer.concat(own().flatMap((frame) => (frame.kind === of ? [frame.payload] : []))).toString();
    if (kind === FRAME_KIND.responseBody) {
      const body = (this.#bodies.get(stream) ?? '') + payload;
      this.#bodies.set(stream, body);
      await until('its body has come', () => text(kind).length >= body.length);
      assert.equal(text(kind).slice(0, body.length), body);
      return;
    }
    const frame = await until('its frame has come', () => own().find((one) => one.kind === kind));
    if (kind === FRAME_KIND.end) assert.equal(String(frame.payload[0]), payload);
    else assertAlike(JSON.parse(payload), JSON.parse(text(kind)));
  }
}
