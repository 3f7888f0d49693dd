import { connect, type Socket } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { Samples, type Spread, spreadOf } from './histogram.ts';
import { interrupt } from './interrupt.ts';

/**
 * The load generator: connections over which requests go one after the other, each as soon as the answer before it is
 * whole (a closed loop). It speaks just as much HTTP/1.1 as the answers need, from bytes made once, so that it takes
 * little of the processors that it shares with what it measures.
 */
export interface Load {
  url: string;
  headers: Record<string, string>;
  body: Buffer;
  connections: number;
  /** How long; answers that come later are waited for, and not counted. */
  for_ms: number;
  /** No more requests than this. */
  most?: number;
  /** An answer without this in it is a failure, and one with another status. */
  expects: string;
  status?: number;
}

export interface Measured {
  requests: number;
  failed: number;
  /** Of the first that failed. */
  failure: string | null;
  per_second: number;
  /** To the last byte, in ms. */
  latency: Spread;
  /** To the first byte of the body, in ms. */
  first_byte: Spread;
}

const ANSWER_WITHIN_MS = 60_000;
/** A server that refuses connections is not asked as fast as it can refuse. */
const REFUSED_PAUSE_MS = 50;

/** The bytes of one request. */
export function requestBytes(url: string, headers: Record<string, string>, body: Buffer): Buffer {
  const { host, pathname, search } = new URL(url);
  const head = Object.entries({
    host,
    'content-type': 'application/json',
    'content-length': String(body.length),
    ...headers,
  }).map(([name, value]) => `${name}: ${value}\r\n`);
  return Buffer.concat([Buffer.from(`POST ${pathname}${search} HTTP/1.1\r\n${head.join('')}\r\n`), body]);
}

export async function generate(load: Load): Promise<Measured> {
  const request = requestBytes(load.url, load.headers, load.body);
  const wanted: Wanted = { status: load.status ?? 200, expects: Buffer.from(load.expects) };
  const latency = new Samples();
  const first_byte = new Samples();
  let failed = 0;
  let failure: string | null = null;
  let counted = 0;
  let begun = 0;
  const most = load.most ?? Infinity;
  // Connections are there before the time begins: how fast a server accepts them is not what is measured.
  const sockets = await Promise.all(
    Array.from({ length: load.connections }, () => dial(load.url).catch(() => null)),
  );
  const began_ms = performance.now();
  const until_ms = began_ms + load.for_ms;
  let last_ms = began_ms;

  await Promise.all(sockets.map(drive));
  const latency_spread = spreadOf(latency.values());
  return {
    requests: counted,
    failed,
    failure,
    per_second: (counted / (last_ms - began_ms)) * 1000,
    latency: latency_spread,
    first_byte: spreadOf(first_byte.values()),
  };

  async function drive(first: Socket | null): Promise<void> {
    let socket = first;
    while (performance.now() < until_ms && begun++ < most && !interrupt.signal.aborted) {
      try {
        socket ??= await dial(load.url);
        const sent_ms = performance.now();
        const answer = await ask(socket, request, wanted);
        const done_ms = performance.now();
        if (done_ms > until_ms) break;
        latency.add(done_ms - sent_ms);
        first_byte.add(answer.first_byte_ms - sent_ms);
        counted++;
        last_ms = Math.max(last_ms, done_ms);
        if (answer.keep_alive) continue;
      } catch (error) {
        failed++;
        failure ??= (error as Error).message;
      }
      if (socket === null) await pause(REFUSED_PAUSE_MS);
      socket?.destroy();
      socket = null;
    }
    socket?.destroy();
  }
}

export function dial(url: string): Promise<Socket> {
  const { hostname, port } = new URL(url);
  return new Promise((resolve, reject) => {
    const socket = connect({ host: hostname, port: Number(port), noDelay: true });
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.off('error', reject);
      socket.on('error', () => undefined); // its end is seen where an answer is waited for
      resolve(socket);
    });
  });
}

interface Answer {
  first_byte_ms: number;
  keep_alive: boolean;
}

export interface Wanted {
  status: number;
  /** What the body has in it. */
  expects: Buffer;
}

/** Sends one request. @throws on anything but a whole answer that is wanted */
export function ask(socket: Socket, request: Buffer, wanted: Wanted): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const reader = new AnswerReader(wanted);
    const timer = setTimeout(() => end(new Error('No answer within a minute.')), ANSWER_WITHIN_MS);
    const onData = (chunk: Buffer) => {
      try {
        if (reader.take(chunk)) end(null);
      } catch (error) {
        end(error as Error);
      }
    };
    const onClose = () => end(new Error('The connection was closed within an answer.'));
    socket.on('data', onData);
    socket.on('close', onClose);
    socket.write(request);

    function end(error: Error | null): void {
      clearTimeout(timer);
      socket.off('data', onData);
      socket.off('close', onClose);
      if (error === null) resolve({ first_byte_ms: reader.first_byte_ms, keep_alive: reader.keep_alive });
      else reject(error);
    }
  });
}

const HEAD_END = Buffer.from('\r\n\r\n');
const LINE_END = Buffer.from('\r\n');

/** Reads one answer: its head, then a body by its length or in chunks. */
class AnswerReader {
  first_byte_ms = 0;
  keep_alive = true;
  readonly #wanted: Wanted;
  #head: Buffer | null = null;
  #rest: Buffer = Buffer.alloc(0);
  #left = -1;
  #chunked = false;
  #found = false;
  #status = '';
  /** The last bytes of the body so far, in which what is expected may begin. */
  #tail: Buffer = Buffer.alloc(0);

  constructor(wanted: Wanted) {
    this.#wanted = wanted;
  }

  /** @returns whether the answer is whole */
  take(chunk: Buffer): boolean {
    if (this.#head !== null) return this.#body(chunk);
    this.#rest = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    const end = this.#rest.indexOf(HEAD_END);
    if (end === -1) return false;
    this.#head = this.#rest.subarray(0, end);
    const head = this.#head.toString('latin1').toLowerCase();
    this.#status = head.slice(9, 12);
    this.#chunked = /\r\ntransfer-encoding: *chunked/.test(head);
    this.#left = this.#chunked ? 0 : Number(/\r\ncontent-length: *(\d+)/.exec(head)?.[1] ?? -1);
    this.keep_alive = !/\r\nconnection: *close/.test(head);
    if (!this.#chunked && this.#left < 0) throw new Error('An answer without a length.');
    const body = this.#rest.subarray(end + HEAD_END.length);
    this.#rest = Buffer.alloc(0);
    return body.length === 0 && !this.#isWhole() ? false : this.#body(body);
  }

  #isWhole(): boolean {
    return !this.#chunked && this.#left === 0;
  }

  #body(piece: Buffer): boolean {
    if (piece.length > 0 && this.first_byte_ms === 0) this.first_byte_ms = performance.now();
    return this.#chunked ? this.#chunks(piece) : this.#counted(piece);
  }

  #counted(piece: Buffer): boolean {
    this.#look(piece);
    this.#left -= piece.length;
    return this.#left <= 0 && this.#judge();
  }

  #chunks(piece: Buffer): boolean {
    let rest = this.#rest.length === 0 ? piece : Buffer.concat([this.#rest, piece]);
    for (;;) {
      if (this.#left > 0) {
        // The bytes of a chunk, with the line end after them.
        const taken = rest.subarray(0, this.#left);
        this.#look(taken.subarray(0, Math.max(0, this.#left - LINE_END.length)));
        this.#left -= taken.length;
        rest = rest.subarray(taken.length);
        if (this.#left > 0) break;
      }
      const end = rest.indexOf(LINE_END);
      if (end === -1) break;
      const size = Number.parseInt(rest.subarray(0, end).toString('latin1'), 16);
      if (size === 0) {
        if (rest.length < end + 4) break;
        return this.#judge();
      }
      this.#left = size + LINE_END.length;
      rest = rest.subarray(end + LINE_END.length);
    }
    this.#rest = rest;
    return false;
  }

  #look(piece: Buffer): void {
    if (this.#found) return;
    const seen = this.#tail.length === 0 ? piece : Buffer.concat([this.#tail, piece]);
    const { expects } = this.#wanted;
    this.#found = seen.includes(expects);
    this.#tail = seen.subarray(-expects.length);
  }

  #judge(): true {
    if (this.#status !== String(this.#wanted.status)) throw new Error(`An answer of ${this.#status}.`);
    if (!this.#found) throw new Error('An answer without what was expected in it.');
    return true;
  }
}
