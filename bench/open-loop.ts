import type { Socket } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { Samples, type Spread, spreadOf } from './histogram.ts';
import { ask, dial, requestBytes, type Wanted } from './load.ts';
import { sharedNow_ms } from './orders.ts';

/**
 * Requests at a fixed rate, whatever becomes of those before them: an open loop, in which a server that is slow does not
 * get less to do. Each has its number in its body.
 */
export interface OpenLoad {
  url: string;
  headers: Record<string, string>;
  per_second: number;
  for_ms: number;
  bodyOf(n: number): Buffer;
  wanted: Wanted;
}

export interface Opened {
  /** When each was sent, by the clock that all processes share; NaN: it failed. */
  sent_ms: number[];
  /** To the last byte of its answer. */
  answered: Spread;
  /** How late the generator was: where this is large, it is the generator that was measured. */
  late: Spread;
  failed: number;
  failure: string | null;
}

/** Enough for a rate of thousands; more are dialled when all are waited for. */
const CONNECTIONS = 64;

export async function openLoop(load: OpenLoad): Promise<Opened> {
  const idle: Socket[] = await Promise.all(Array.from({ length: CONNECTIONS }, () => dial(load.url)));
  const all = new Set(idle);
  const sent_ms: number[] = [];
  const answered = new Samples();
  const late = new Samples();
  const asked: Promise<void>[] = [];
  let failed = 0;
  let failure: string | null = null;
  const count = Math.round((load.per_second * load.for_ms) / 1000);
  const began_ms = sharedNow_ms();
  for (let n = 0; n < count; ) {
    const due = Math.min(count, Math.floor(((sharedNow_ms() - began_ms) * load.per_second) / 1000) + 1);
    for (; n < due; n++) {
      late.add(sharedNow_ms() - (began_ms + (n * 1000) / load.per_second));
      asked.push(send(n));
    }
    if (n < count) await pause(1);
  }
  await Promise.all(asked);
  for (const socket of all) socket.destroy();
  return { sent_ms, answered: spreadOf(answered.values()), late: spreadOf(late.values()), failed, failure };

  async function send(n: number): Promise<void> {
    const request = requestBytes(load.url, load.headers, load.bodyOf(n));
    sent_ms[n] = Number.NaN;
    let socket = idle.pop();
    try {
      if (socket === undefined) all.add((socket = await dial(load.url)));
      const at_ms = sharedNow_ms();
      const { keep_alive } = await ask(socket, request, load.wanted);
      sent_ms[n] = at_ms;
      answered.add(sharedNow_ms() - at_ms);
      if (keep_alive) idle.push(socket);
      else socket.destroy();
    } catch (error) {
      failed++;
      failure ??= (error as Error).message;
      socket?.destroy();
    }
  }
}
