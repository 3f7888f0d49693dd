import type { Socket } from 'node:net';
import type { ControlMessage, ControlMessageOf } from '@flotilla/protocol';
import { decodeFrame, encodeFrame, FRAME_KIND, type Frame, PROTOCOL_VERSION } from '@flotilla/protocol';
import { WebSocket } from 'ws';
import { until } from './until.ts';
import type { World } from './world.ts';

/**
 * A node of which the test writes every byte: really enrolled, on a real socket, obeying nothing. It answers nothing
 * by itself, except that `beats` keeps it alive where a test asks for that.
 */
export interface RawNode {
  readonly id: string;
  readonly credential: string;
  /** A new socket, open but not registered; with its own credential, or another. */
  dial(credential?: string): Promise<RawLink>;
  /** A new socket, registered with what `raw-…` offers: one pool, one backend, one model of its own name. */
  join(registration?: Record<string, unknown>): Promise<RawLink>;
}

export interface RawLink {
  readonly ws: WebSocket;
  /** Everything that was said to it. */
  readonly heard: ControlMessage[];
  readonly frames: Frame[];
  readonly closed: Promise<{ code: number; reason: string }>;
  /** Text and bytes as they are, anything else as JSON. */
  send(message: unknown): void;
  frame(kind: number, stream: number, offset: number, payload: Uint8Array | string): void;
  /** What `send` sends goes in one write, as a daemon's messages of one turn do. */
  together(send: () => void): void;
  /** Waits for the first message of this type from now on that `matches`. */
  next<T extends ControlMessage['type']>(
    type: T,
    matches?: (message: ControlMessageOf<T>) => boolean,
  ): Promise<ControlMessageOf<T>>;
  /** Sends and waits for the `error` that answers it. */
  refused(message: unknown): Promise<string>;
  beat(more?: Record<string, unknown>): void;
  /** Beats until the link closes, once it is registered: before that a beat breaks the rules. */
  beats(every_ms: number): void;
  /** Sends this again and again, with a beat after each, as fast as it is read, until the link closes. */
  flood(message: unknown): void;
  close(): void;
}

export async function enrolRawNode(world: World, name: string): Promise<RawNode> {
  const { token } = await world.plane.send<{ token: string }>('POST', '/api/v1/enrolment-tokens', {
    labels: { raw: name },
  });
  const reply = await fetch(`${world.plane.url}/node/v1/enrol`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ token, name }),
  });
  const { id, credential } = (await reply.json()) as { id: string; credential: string };
  const url = `${world.plane.url.replace('http', 'ws')}/node/v1/link`;
  const dial = (other = credential) => openRawLink(url, other);
  return {
    id,
    credential,
    dial,
    async join(registration) {
      const link = await dial();
      link.send(rawRegistration(name, registration));
      await link.next('node.registered');
      return link;
    },
  };
}

/** What a raw node says of itself; `pools`, `backends` and health agree. */
export function rawRegistration(name: string, more: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    type: 'node.register',
    boot_id: `boot-${name}`,
    protocol: { min: PROTOCOL_VERSION, max: PROTOCOL_VERSION },
    descriptor: {
      name,
      pools: [{ id: 'pool', capacity: 64, capacity_from: 'config' }],
      backends: [{ id: 'backend', kind: 'raw', pool: 'pool', models: [{ id: name }] }],
    },
    descriptor_hash: 'h1',
    inventory: [],
    backends: [{ id: 'backend', health: 'healthy' }],
    ...more,
  };
}

export async function openRawLink(url: string, credential: string): Promise<RawLink> {
  const ws = new WebSocket(url, {
    headers: { authorization: `Bearer ${credential}` },
    perMessageDeflate: false,
  });
  const heard: ControlMessage[] = [];
  const frames: Frame[] = [];
  const { promise: closed, resolve } = Promise.withResolvers<{ code: number; reason: string }>();
  const { promise: opened, resolve: open, reject } = Promise.withResolvers<void>();
  let seq = 0;
  let registered = false;
  const connected = Promise.withResolvers<Socket>();
  ws.on('upgrade', ({ socket }) => connected.resolve(socket));
  ws.on('open', open);
  ws.on('error', reject);
  ws.on('close', (code, reason) => resolve({ code, reason: reason.toString() }));
  ws.on('message', (data: Buffer, binary) => {
    if (binary) frames.push(decodeFrame(data));
    else {
      const message = JSON.parse(data.toString()) as ControlMessage;
      registered ||= message.type === 'node.registered';
      heard.push(message);
    }
  });
  await opened;
  const socket = await connected.promise;

  const link: RawLink = {
    ws,
    heard,
    frames,
    closed,
    send: (message) =>
      ws.send(
        typeof message === 'string' || message instanceof Uint8Array ? message : JSON.stringify(message),
      ),
    frame: (kind, stream, offset, payload) =>
      ws.send(encodeFrame(kind as Frame['kind'], stream, offset, Buffer.from(payload))),
    together(send) {
      socket.cork();
      try {
        send();
      } finally {
        socket.uncork();
      }
    },
    next(type, matches = () => true) {
      const from = heard.length;
      return until(`${type} is heard`, () =>
        heard.slice(from).find((message) => message.type === type && matches(message as never)),
      ) as Promise<never>;
    },
    async refused(message) {
      const answer = link.next('error');
      link.send(message);
      const { code, message: said } = await answer;
      return `${code}: ${said}`;
    },
    beat: (more) =>
      link.send({
        type: 'node.heartbeat',
        seq: ++seq,
        descriptor_hash: 'h1',
        backends: [{ id: 'backend', health: 'healthy' }],
        progress_seq: seq,
        ...more,
      }),
    flood(message) {
      // One a turn: what a peer reads at once never fills the buffer, and its close would not be seen.
      const sending = setInterval(() => {
        if (ws.bufferedAmount < 1024 * 1024) link.send(message);
        link.beat();
      });
      ws.once('close', () => clearInterval(sending));
    },
    beats(every_ms) {
      const timer = setInterval(() => {
        if (registered && ws.readyState === ws.OPEN) link.beat();
      }, every_ms);
      void closed.then(() => clearInterval(timer));
    },
    close: () => ws.terminate(),
  };
  return link;
}

/** The request body frames of a stream, put together; undefined until its end has come. */
export function bodyOf(link: RawLink, stream: number): Buffer | undefined {
  const own = link.frames.filter((frame) => frame.stream === stream);
  if (!own.some((frame) => frame.kind === FRAME_KIND.end)) return undefined;
  return Buffer.concat(
    own.filter((frame) => frame.kind === FRAME_KIND.requestBody).map((frame) => frame.payload),
  );
}
