import {
  type Bus,
  type Clock,
  Outbox,
  type OutStream,
  type ReceiveWindow,
  type Timer,
  receiveWindow,
  received,
} from '@flotilla/core';
import { type Frame, decodeFrame } from '@flotilla/protocol';
import { type HeldForPeer, type PeerMessage, readPeerMessage } from './peer-messages.ts';

/**
 * What goes to and fro between this replica and one other, over a bus that may lose messages. Each carries its sender's
 * session and its number in it, so that a hole is seen:
 *
 *     closed ──something is said, the bus is back──▶ syncing ──the other's sync answers ours──▶ open
 *        ▲                            ▲ └──── nothing for 3 s ────┐              │
 *        │                            └── a hole, the other's new session ───────┤
 *        └────────────────────── the bus is away, the other is dead ◀────────────┘
 *
 * A new session means that whatever was under way is void: both tell what they hold for the other, and streams go on
 * from what their owners have. What is said while it is not open is dropped: the sync says it, or whoever asked asks again
 * (`synced`).
 */
export interface ChannelEvents {
  message(message: PeerMessage): void;
  frame(frame: Frame): void;
  /** What this side holds for the other. */
  holds(): HeldForPeer[];
  /** The other side has told what it holds for this one: everything else is lost. */
  synced(theirs: readonly HeldForPeer[]): void;
  /** Not heard of, or a message was lost: streams wait. */
  broken(): void;
}

export interface Channel {
  readonly open: boolean;
  readonly heard: number;
  send(message: PeerMessage): void;
  /** Sends a stream under this number. */
  attach(stream: number, out: OutStream, from: { acked_offset: number; head_received: boolean }): boolean;
  detach(stream: number): void;
  credit(stream: number, acked_offset: number): void;
  /** A number for a stream that this side owns. */
  newStream(): number;
  take(data: Uint8Array): void;
  /** Messages may have been lost, or the bus was away and is back: both sides say what they hold. */
  restart(): void;
  close(): void;
}

const TICK_MS = 1000;
const SILENT_MS = 3000;
const HEADER_BYTES = 9;
const TEXT = 1;
const BINARY = 2;
/** Numbers of messages and streams begin anew after this many: a channel may stand for months. */
const NUMBERS = 0x1_0000_0000;
/** Shortly before that, so that every session passes the turn, and not one in a thousand, weeks after its start. */
const FIRST = NUMBERS - 16;
/** What a side wants of the other, not what it answers. */
const OPENING: ReadonlySet<PeerMessage['type']> = new Set(['claim', 'adopt', 'work']);
/** For the window of the connection, which is sized by the delay of its acknowledgements. */
const ROUND_MS = 5000;

export function openChannel(
  bus: Bus,
  other: string,
  owns_odd: boolean,
  clock: Clock,
  events: ChannelEvents,
): Channel {
  let session = 0;
  let next_seq = FIRST;
  let their_session = 0;
  let their_seq = 0;
  let state: 'closed' | 'syncing' | 'open' = 'closed';
  let heard = 0;
  let heard_ms = clock.now_ms();
  let next_stream = owns_odd ? FIRST + 1 : FIRST;
  let taken: ReceiveWindow = receiveWindow();
  let outbox = newOutbox();
  let timer: Timer | null = null;

  const channel: Channel = {
    get open() {
      return state === 'open';
    },
    get heard() {
      return heard;
    },
    send(message) {
      if (state === 'open') return post(TEXT, Buffer.from(JSON.stringify(message)));
      // Whoever asks for something asks again once it is open.
      if (state === 'closed' && OPENING.has(message.type)) restart();
    },
    attach: (stream, out, from) => outbox.attach(stream, out, from),
    detach: (stream) => outbox.detach(stream),
    credit(stream, acked_offset) {
      outbox.credit(stream, acked_offset);
    },
    newStream() {
      const stream = next_stream;
      // None is 0, which says that there is no stream.
      next_stream = stream + 2 < NUMBERS ? stream + 2 : owns_odd ? 1 : 2;
      return stream;
    },
    take,
    restart: () => restart(),
    close() {
      timer?.cancel();
      timer = null;
      if (state === 'closed') return;
      state = 'closed';
      outbox.close();
      events.broken();
    },
  };
  return channel;

  function newOutbox(): Outbox {
    return new Outbox(
      {
        sendText: (text) => post(TEXT, Buffer.from(text)),
        sendBinary: (header, payload) => post(BINARY, header, payload),
      },
      () => clock.now_ms(),
    );
  }

  function post(kind: number, ...parts: Uint8Array[]): void {
    const head = Buffer.allocUnsafe(HEADER_BYTES);
    head[0] = kind;
    head.writeUInt32BE(session, 1);
    head.writeUInt32BE(next_seq, 5);
    next_seq = (next_seq + 1) % NUMBERS;
    bus.send(other, Buffer.concat([head, ...parts]));
  }

  /** A session of our own, in which nothing of the former counts. */
  function restart(answers = 0): void {
    const was_open = state === 'open';
    state = 'syncing';
    // Larger than any before it, also of a process that had this name's place: the first is drawn from the clock.
    session = session === 0 ? clock.wall_ms() % 0x8000_0000 : (session + 1) % 0x1_0000_0000;
    next_seq = FIRST;
    taken = receiveWindow();
    outbox.close();
    outbox = newOutbox();
    if (was_open) events.broken();
    sync(answers);
    heard_ms = clock.now_ms();
    timer ??= clock.after(TICK_MS, tick);
  }

  function sync(answers: number): void {
    post(TEXT, Buffer.from(JSON.stringify({ type: 'sync', answers, holds: events.holds() })));
  }

  function tick(): void {
    timer = null;
    timer = clock.after(TICK_MS, tick);
    if (clock.now_ms() - heard_ms >= SILENT_MS) restart();
    else channel.send({ type: 'ping' });
  }

  function take(data: Uint8Array): void {
    if (data.byteLength < HEADER_BYTES) return;
    const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
    const from_session = bytes.readUInt32BE(1);
    const seq = bytes.readUInt32BE(5);
    const payload = bytes.subarray(HEADER_BYTES);
    const message = bytes[0] === TEXT ? readPeerMessage(payload) : undefined;
    heard++;
    heard_ms = clock.now_ms();
    if (message?.type === 'sync') return onSync(from_session, seq, message.answers, message.holds);
    // The other side takes it for open: it is told that it is not.
    if (state === 'closed') return restart();
    // Of a session before the other's last one, or before it has answered ours: void.
    if (state !== 'open' || from_session !== their_session) return;
    if (seq !== their_seq) return restart();
    their_seq = (their_seq + 1) % NUMBERS;
    if (bytes[0] === BINARY) return onFrame(payload);
    if (message === undefined) return; // of a newer replica
    switch (message.type) {
      case 'ping':
        return;
      case 'link.ack':
        return outbox.linkAck(message.received, ROUND_MS);
      case 'credit':
        outbox.credit(message.stream, message.acked_offset);
        return events.message(message);
      default:
        return events.message(message);
    }
  }

  function onSync(from_session: number, seq: number, answers: number, holds: HeldForPeer[]): void {
    const known = from_session === their_session && state === 'open';
    their_session = from_session;
    their_seq = (seq + 1) % NUMBERS;
    if (known) return;
    if (state === 'closed' || answers !== session) {
      // Where both began at once, each has its session already, and answers the other's with it.
      if (state === 'syncing') sync(from_session);
      else restart(from_session);
    }
    state = 'open';
    events.synced(holds);
  }

  function onFrame(payload: Buffer): void {
    const due = received(taken, payload.byteLength);
    taken = due.window;
    if (due.ack !== undefined) channel.send({ type: 'link.ack', received: due.ack });
    events.frame(decodeFrame(payload));
  }
}
