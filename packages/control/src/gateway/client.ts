import type { Clock, Timer } from '@flotilla/core';
import type { ServerResponse } from 'node:http';

/** Names and values in turn, no name twice: as such they are written, and nothing is made of them before. */
export type HeaderList = string[];

/**
 * The client's end of one answer. One piece of at most 64 KiB is with the socket at a time, so what the socket has
 * taken is known exactly: that is what a node may forget, and a client that takes nothing for the stall time is gone.
 *
 *     open ──end()──▶ ending ──all taken──▶ closed
 *       └──── FIN, RST, stalled, cut() ─────▲
 */
const PIECE_BYTES = 64 * 1024;

export interface ClientEvents {
  /** The socket has taken so many more body bytes. */
  taken(bytes: number): void;
  /** The client went away before the answer was whole. */
  gone(reason: string): void;
  /** The socket has taken the whole answer. */
  done(): void;
}

export class Client {
  readonly #response: ServerResponse;
  readonly #clock: Clock;
  readonly #stall_ms: number;
  readonly #events: ClientEvents;
  /** Pieces that wait; `counted` ones are the backend's bytes, the others are ours. */
  #waiting: { bytes: Uint8Array; counted: boolean }[] = [];
  #with_socket = false;
  #ending = false;
  #closed = false;
  /** Since when the socket has something that it has not taken; null: it has nothing. */
  #waiting_since_ms: number | null = null;
  /** Looks whether it still has: one for a whole stream, not one for each of its pieces. */
  #stall: Timer | null = null;

  constructor(response: ServerResponse, clock: Clock, stall_ms: number, events: ClientEvents) {
    this.#response = response;
    this.#clock = clock;
    this.#stall_ms = stall_ms;
    this.#events = events;
    response.on('close', () => this.#onClose());
    response.on('error', () => undefined);
  }

  get headersSent(): boolean {
    return this.#response.headersSent;
  }

  get closed(): boolean {
    return this.#closed;
  }

  head(status: number, headers: HeaderList): void {
    if (!this.#closed) this.#response.writeHead(status, headers);
  }

  write(bytes: Uint8Array, counted: boolean): void {
    if (this.#closed || bytes.byteLength === 0) return;
    for (let from = 0; from < bytes.byteLength; from += PIECE_BYTES) {
      this.#waiting.push({ bytes: bytes.subarray(from, from + PIECE_BYTES), counted });
    }
    this.#next();
  }

  end(): void {
    this.#ending = true;
    this.#next();
  }

  /** A whole answer in one write, with its length known. */
  answer(status: number, headers: HeaderList, body: Uint8Array): void {
    if (this.#closed) return;
    headers.push('content-length', String(body.byteLength));
    this.#response.writeHead(status, headers);
    this.#ending = true;
    if (body.byteLength > PIECE_BYTES) return this.write(body, false);
    this.#endResponse(body);
  }

  /** The connection is cut, so that nobody takes what was sent for a whole answer. */
  cut(): void {
    this.#response.destroy();
  }

  #next(): void {
    if (this.#with_socket || this.#closed) return;
    if (this.#waiting.length === 0) {
      if (this.#ending && !this.#response.writableEnded) this.#endResponse();
      return;
    }
    const { bytes, counted } = this.#takePiece();
    this.#with_socket = true;
    this.#waitForSocket();
    this.#response.write(bytes, (error) => {
      this.#with_socket = false;
      this.#waiting_since_ms = null;
      if ((error !== null && error !== undefined) || this.#closed) return;
      if (counted > 0) this.#events.taken(counted);
      this.#next();
    });
  }

  /** Small pieces that wait together go in one write. */
  #takePiece(): { bytes: Uint8Array; counted: number } {
    const parts: Uint8Array[] = [];
    let size = 0;
    let counted = 0;
    for (const piece of this.#waiting) {
      if (parts.length > 0 && size + piece.bytes.byteLength > PIECE_BYTES) break;
      parts.push(piece.bytes);
      size += piece.bytes.byteLength;
      if (piece.counted) counted += piece.bytes.byteLength;
    }
    this.#waiting.splice(0, parts.length);
    return { bytes: parts.length === 1 ? parts[0]! : Buffer.concat(parts, size), counted };
  }

  #endResponse(last?: Uint8Array): void {
    this.#response.end(last);
    // What the system has taken at once is out of our hands.
    if (this.#response.writableLength > 0) this.#waitForSocket();
  }

  #waitForSocket(): void {
    this.#waiting_since_ms = this.#clock.now_ms();
    this.#stall ??= this.#clock.after(this.#stall_ms, () => this.#look());
  }

  #look(): void {
    this.#stall = null;
    if (this.#waiting_since_ms === null) return;
    const left_ms = this.#waiting_since_ms + this.#stall_ms - this.#clock.now_ms();
    if (left_ms > 0) {
      this.#stall = this.#clock.after(left_ms, () => this.#look());
      return;
    }
    this.#gone(`it took nothing for ${this.#stall_ms} ms`);
    this.#response.destroy();
  }

  #onClose(): void {
    if (this.#ending && this.#response.writableFinished) {
      this.#stall?.cancel();
      if (!this.#closed) {
        this.#closed = true;
        this.#events.done();
      }
      return;
    }
    this.#gone('it closed the connection');
  }

  #gone(reason: string): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#stall?.cancel();
    this.#waiting = [];
    this.#events.gone(reason);
  }
}
