import type { Socket } from 'node:net';
import { type ReceiveWindow, received, receiveWindow, timings } from '@flotilla/core';
import type { ControlMessage } from '@flotilla/protocol';
import { decodeFrame, type Frame, NODE_FEATURES, PROTOCOL_VERSION } from '@flotilla/protocol';
import { WebSocket } from 'ws';

/**
 * A node's end of a link that costs next to nothing: it registers, beats in the daemon's rhythm with what the daemon's
 * beats say, and acknowledges what it gets. All else is its user's.
 *
 *     dialling ──open──▶ registering ──node.registered──▶ up ──closed──▶ over
 */
export interface BareLink {
  /** Sent within one turn, it goes out as one write. */
  send(message: string | Uint8Array): void;
  /** Without a goodbye. */
  drop(): void;
}

export interface BareLinkOptions {
  /** Of the control plane. */
  url: string;
  name: string;
  boot_id: string;
  credential: string;
  slots: number;
  model: string;
  /** @param sent_ms when the registration was sent, which counts as a beat; by `performance.now` */
  up(sent_ms: number): void;
  closed(reason: string): void;
  acknowledged?(sent_ms: number): void;
  message?(message: ControlMessage): void;
  frame?(frame: Frame): void;
}

export const POOL = 'pool';
const BACKEND = { id: 'backend', health: 'healthy', models: [] };

export function openBareLink(options: BareLinkOptions): BareLink {
  const { name, slots, model } = options;
  const ws = new WebSocket(`${options.url.replace('http', 'ws')}/node/v1/link`, {
    headers: { authorization: `Bearer ${options.credential}` },
    perMessageDeflate: false,
  });
  let socket: Socket | null = null;
  let corked = false;
  let taken: ReceiveWindow = receiveWindow();
  let beating: NodeJS.Timeout | undefined;
  let seq = 0;
  let rtt_ms = 0;
  let sent_ms = 0;
  const link: BareLink = { send, drop: () => ws.terminate() };

  ws.on('upgrade', (response) => {
    socket = response.socket;
  });
  ws.on('open', () => {
    sent_ms = performance.now();
    send(JSON.stringify(registration()));
  });
  ws.on('message', (data: Buffer, binary) => {
    if (!binary) return onText(data);
    const due = received(taken, data.byteLength);
    taken = due.window;
    if (due.ack !== undefined) send(JSON.stringify({ type: 'link.ack', received: due.ack }));
    options.frame?.(decodeFrame(data));
  });
  let why = '';
  ws.on('error', (error) => {
    why = error.message;
  });
  ws.on('close', (code, reason) => {
    clearTimeout(beating);
    options.closed(why === '' ? `${code} ${reason.toString()}` : why);
  });
  return link;

  function onText(data: Buffer): void {
    const message = JSON.parse(data.toString()) as ControlMessage;
    if (message.type === 'node.heartbeat.ack') {
      rtt_ms = performance.now() - sent_ms;
      options.acknowledged?.(sent_ms);
    } else if (message.type === 'node.registered') {
      beatAfter(message.heartbeat_ms);
      options.up(sent_ms);
    } else options.message?.(message);
  }

  function beatAfter(heartbeat_ms: number): void {
    const { jitter_ms } = timings(heartbeat_ms);
    beating = setTimeout(
      () => {
        sent_ms = performance.now();
        send(JSON.stringify(beat()));
        beatAfter(heartbeat_ms);
      },
      heartbeat_ms + Math.random() * jitter_ms,
    );
  }

  function send(message: string | Uint8Array): void {
    if (ws.readyState !== ws.OPEN) return;
    if (!corked) {
      corked = true;
      socket!.cork();
      process.nextTick(() => {
        corked = false;
        socket!.uncork();
      });
    }
    ws.send(message);
  }

  function registration(): object {
    return {
      type: 'node.register',
      boot_id: options.boot_id,
      protocol: { min: PROTOCOL_VERSION, max: PROTOCOL_VERSION },
      features: Object.values(NODE_FEATURES),
      descriptor: {
        name,
        version: 'bench',
        pools: [{ id: POOL, capacity: slots, capacity_from: 'config' }],
        backends: [
          { id: BACKEND.id, kind: 'bench', pool: POOL, models: [{ id: model, operations: ['chat'] }] },
        ],
      },
      descriptor_hash: 'bench',
      inventory: [],
      backends: [BACKEND],
    };
  }

  /** What a daemon that does nothing says; of one that works the counts would be others. */
  function beat(): object {
    return {
      type: 'node.heartbeat',
      seq: ++seq,
      descriptor_hash: 'bench',
      pools: [{ id: POOL, in_flight: 0, capacity: slots }],
      backends: [BACKEND],
      journal: { health: 'healthy' },
      host: { cpus: 2, load_1m: 0.42, memory_total_bytes: 25_282_281_472, memory_free_bytes: 1_282_281_472 },
      progress_seq: seq,
      draining: false,
      rtt_ms,
    };
  }
}
