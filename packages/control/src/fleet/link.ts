import {
  ACK_EVERY_BYTES,
  ChurnMap,
  type Clock,
  type LinkPort,
  type LinkWrites,
  OutStream,
  Outbox,
  type ReceiveWindow,
  linkWrites,
  receiveWindow,
  received,
} from '@flotilla/core';
import {
  type ControlMessage,
  type ControlMessageOf,
  type ErrorCode,
  FRAME_KIND,
  FlotillaError,
  type Frame,
  type InventoryItem,
  MESSAGE_MAX_BYTES,
  type NodeMessage,
  decodeFrame,
  readNodeMessage,
} from '@flotilla/protocol';
import type { Duplex } from 'node:stream';
import type { WebSocket } from 'ws';
import type { Attempt } from '../dispatch/attempt.ts';

/**
 * One accepted connection of one node: the WebSocket here, a session over plain HTTP in http-session.ts.
 *
 *     open ──close(), socket closed, too many broken frames──▶ closed
 *
 * Stream numbers belong to the connection; attempts outlive it. What is written within one turn of the event loop
 * becomes one write, or few. Nothing here decides: messages go to `LinkEvents`.
 */
export interface Link {
  readonly epoch: number;
  readonly open: boolean;
  /** The node's end stops its work by its own clock when the lease ends. */
  readonly fences: boolean;
  /** Counts what has arrived, beats apart: while it moves, an answer may be behind other work's output. */
  readonly heard: number;
  /** Round trip of the node's last acknowledged beat; explains a late answer to an offer. */
  rtt_ms: number;
  send(message: ControlMessage): void;
  offer(attempt: Attempt, deadlines: ControlMessageOf<'job.offer'>['deadlines']): void;
  /** Takes up an attempt that the node came back with. @returns its stream, or undefined where it cannot go on */
  resume(attempt: Attempt, item: InventoryItem): number | undefined;
  closeStream(attempt: Attempt): void;
  credit(stream: number, acked_offset: number): void;
  roundTrip(rtt_ms: number): void;
  /** Whether the other end answers a ping in time. */
  alive(within_ms: number): Promise<boolean>;
  close(code: number, error?: { code: ErrorCode; message: string }): void;
}

export interface LinkEvents {
  /** @throws FlotillaError: the node is told so, and a hundred of them close the link */
  message(message: NodeMessage): void;
  frame(frame: Frame, attempt: Attempt): void;
  /** What the node sent has met a fault of ours; the link is closed with it, and nothing else. */
  broke(error: unknown): void;
  closed(reason: string): void;
}

export const CLOSE = {
  goingAway: 1001,
  tryLater: 1013,
  revoked: 4001,
  superseded: 4002,
  nodeInUse: 4003,
  protocol: 4004,
  misbehaved: 4005,
  silent: 4006,
} as const;

/** A peer that breaks the rules this often in a minute is cut off. */
const FAULTS_MOST = 100;
const FAULTS_WITHIN_MS = 60_000;
/** Windows bound what waits for a node that reads; one that only asks and never reads is cut off here. */
const UNREAD_MOST_BYTES = 32 * 1024 * 1024;
/** How long a refused peer has to take the closing handshake. */
const CLOSE_WAIT_MS = 1000;

/** What a link needs of its WebSocket, which it writes its messages beside. */
export type LinkSocket = Pick<
  WebSocket,
  'on' | 'once' | 'off' | 'send' | 'ping' | 'close' | 'terminate' | 'readyState' | 'OPEN' | 'bufferedAmount'
>;

export interface LinkOptions {
  ws: LinkSocket;
  writes: LinkWrites;
  epoch: number;
  replica: string;
  heartbeat_ms: number;
  clock: Clock;
  events: LinkEvents;
}

export function openLink({ ws, writes, epoch, replica, heartbeat_ms, clock, events }: LinkOptions): Link {
  let faults = 0;
  let faults_since_ms = clock.now_ms();
  let next_stream = 1;
  let taken: ReceiveWindow = receiveWindow();
  const attempts = new ChurnMap<number, Attempt>();
  /** Of each stream, how much of its answer the node was last told to be handed on. */
  const told = new Map<number, number>();
  const outbox = new Outbox(portOf(ws, writes), () => clock.now_ms());

  // Fields, not getters: an object that is made with a getter has a shape of its own, in memory and to the compiler.
  const link: Link & { open: boolean; heard: number } = {
    epoch,
    open: true,
    fences: true,
    heard: 0,
    rtt_ms: 0,
    send: (message) => outbox.sendText(JSON.stringify(message)),
    offer,
    resume,
    closeStream(attempt) {
      if (attempt.stream === 0) return;
      outbox.detach(attempt.stream);
      attempts.delete(attempt.stream);
      told.delete(attempt.stream);
      attempt.stream = 0;
    },
    credit(stream, acked_offset) {
      // As the node does: most answers end before one is due, and `result.ack` is the last word of them.
      if (acked_offset - (told.get(stream) ?? 0) < ACK_EVERY_BYTES) return;
      told.set(stream, acked_offset);
      link.send({ type: 'stream.credit', stream, acked_offset });
    },
    roundTrip(rtt_ms) {
      link.rtt_ms = rtt_ms;
      outbox.roundTrip(rtt_ms, heartbeat_ms);
    },
    alive: (within_ms) => answersPing(ws, clock, within_ms),
    close(code, error) {
      if (!link.open) return;
      if (error !== undefined) link.send({ type: 'error', ...error });
      ended('closed by the control plane');
      writes.flush();
      closeSocket(ws, clock, code, error?.message ?? '');
    },
  };

  ws.on('message', (data: Buffer, binary: boolean) => {
    if (!link.open) return;
    try {
      if (binary) onFrame(data);
      else onText(data);
    } catch (error) {
      events.broke(error);
      link.close(CLOSE.misbehaved, { code: 'internal', message: 'This message met a fault of ours.' });
    }
    if (ws.bufferedAmount > UNREAD_MOST_BYTES) ws.terminate();
  });
  ws.on('close', (code, reason) =>
    ended(`link closed (${code}${reason.length > 0 ? ` ${reason.toString()}` : ''})`),
  );
  ws.on('error', (error) => ended(`link failed: ${error.message}`));
  return link;

  function offer(attempt: Attempt, deadlines: ControlMessageOf<'job.offer'>['deadlines']): void {
    const { request } = attempt.job;
    const stream = newStream(attempt);
    link.send({
      type: 'job.offer',
      job: request.id,
      attempt: attempt.number,
      owner: request.owner ?? replica,
      stream,
      kind: 'inference',
      operation: request.operation,
      backend: attempt.spot.backend,
      model: attempt.spot.model,
      streaming: request.streaming,
      add_usage: request.add_usage,
      body_length: attempt.body.byteLength,
      deadlines,
      request_id: request.request_id,
      ...(request.traceparent !== null && { traceparent: request.traceparent }),
    });
    sendBody(attempt, stream, 0);
  }

  function resume(attempt: Attempt, item: InventoryItem): number | undefined {
    const stream = newStream(attempt);
    // What runs there, or has run, has its request.
    if (item.state !== 'receiving' || sendBody(attempt, stream, item.body_offset)) {
      attempt.epoch = epoch;
      return stream;
    }
    link.closeStream(attempt);
    return undefined;
  }

  function newStream(attempt: Attempt): number {
    const stream = next_stream++;
    attempt.stream = stream;
    attempts.set(stream, attempt);
    told.set(stream, attempt.credited);
    return stream;
  }

  function sendBody(attempt: Attempt, stream: number, from: number): boolean {
    const body = new OutStream({ kind: FRAME_KIND.requestBody });
    body.push(attempt.body);
    body.end('complete');
    return outbox.attach(stream, body, { acked_offset: from, head_received: true });
  }

  function onText(data: Buffer): void {
    if (data.byteLength > MESSAGE_MAX_BYTES)
      return fault('payload_too_large', 'The text frame is too large.');
    const read = readNodeMessage(data.toString());
    if (!read.ok && read.unknown_type) return outbox.sendText(JSON.stringify(read.error));
    if (!read.ok) return fault(read.error.code as ErrorCode, read.error.message, read.error.id);
    const { message } = read;
    if (message.type !== 'node.heartbeat') link.heard++;
    if (message.type === 'stream.credit') outbox.credit(message.stream, message.acked_offset);
    else if (message.type === 'link.ack') outbox.linkAck(message.received, heartbeat_ms);
    else {
      try {
        events.message(message);
      } catch (error) {
        if (!(error instanceof FlotillaError)) throw error;
        fault(error.code, error.message);
      }
    }
  }

  function onFrame(data: Buffer): void {
    link.heard++;
    const due = received(taken, data.byteLength);
    taken = due.window;
    if (due.ack !== undefined) link.send({ type: 'link.ack', received: due.ack });
    let frame: Frame;
    try {
      frame = decodeFrame(data);
    } catch (error) {
      return fault(
        'invalid_request',
        error instanceof FlotillaError ? error.message : 'The binary frame is unreadable.',
      );
    }
    const attempt = attempts.get(frame.stream);
    // A stream that has just ended may still have frames under way: they are of no interest to anybody.
    if (attempt !== undefined) events.frame(frame, attempt);
    else if (frame.stream >= next_stream || frame.stream === 0) {
      fault('invalid_request', `Stream ${frame.stream} was never opened on this link.`);
    }
  }

  function fault(code: ErrorCode, message: string, id?: string): void {
    link.send({ type: 'error', ...(id === undefined ? {} : { id }), code, message });
    if (clock.now_ms() - faults_since_ms > FAULTS_WITHIN_MS) {
      faults = 0;
      faults_since_ms = clock.now_ms();
    }
    if (++faults >= FAULTS_MOST) {
      link.close(CLOSE.misbehaved, {
        code: 'invalid_request',
        message: `${faults} broken frames on one link.`,
      });
    }
  }

  function ended(reason: string): void {
    if (!link.open) return;
    link.open = false;
    for (const attempt of attempts.values()) attempt.stream = 0;
    attempts.clear();
    told.clear();
    outbox.close();
    events.closed(reason);
  }
}

/** On the socket below a WebSocket that was accepted here. */
export function writesOn(socket: Duplex): LinkWrites {
  return linkWrites({
    write(bytes) {
      if (socket.writable) socket.write(bytes);
    },
    turnEnd: setImmediate,
    mask: null,
  });
}

function portOf(ws: LinkSocket, writes: LinkWrites): LinkPort {
  return {
    sendText(text) {
      if (ws.readyState === ws.OPEN) writes.text(text);
    },
    sendBinary(header, payload) {
      if (ws.readyState === ws.OPEN) writes.binary(header, payload);
    },
  };
}

/** Sends an error a refused peer can read, then closes for good. */
export function refuseLink(
  ws: LinkSocket,
  clock: Clock,
  code: number,
  error: { code: ErrorCode; message: string },
): void {
  ws.send(JSON.stringify({ type: 'error', ...error }));
  closeSocket(ws, clock, code, error.message);
}

function closeSocket(ws: LinkSocket, clock: Clock, code: number, reason: string): void {
  ws.close(code, Buffer.from(reason).subarray(0, 120).toString());
  const timer = clock.after(CLOSE_WAIT_MS, () => ws.terminate());
  ws.once('close', () => timer.cancel());
}

function answersPing(ws: LinkSocket, clock: Clock, within_ms: number): Promise<boolean> {
  return new Promise((resolve) => {
    const finish = (alive: boolean) => {
      timer.cancel();
      ws.off('pong', answered);
      resolve(alive);
    };
    const answered = () => finish(true);
    const timer = clock.after(within_ms, () => finish(false));
    ws.on('pong', answered);
    ws.ping();
  });
}
