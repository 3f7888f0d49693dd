import { encodeFrameHeader, END_OUTCOME, FRAME_KIND, FRAME_PAYLOAD_MAX_BYTES } from '@flotilla/protocol';
import {
  acknowledged,
  room,
  type SendWindow,
  sent,
  STREAM_WINDOW_BYTES,
  streamWindow,
} from './send-window.ts';

/**
 * One direction of one stream, as its sender sees it: an optional head, body bytes, an end. Bytes are kept until the
 * other side acknowledges them, so that after a reconnect the stream goes on from wherever the other side is.
 *
 *     open ──end()──▶ ended ──(end frame handed to the port)──▶ end sent
 *
 * and apart from that: joined (an outbox sends it under a number) or left (no connection; bytes wait here).
 * Moved by: its producer (`head`, `push`, `end`), and the outbox (`join`, `leave`, `takeFrame`, `acknowledge`).
 */
export interface TakenFrame {
  header: Uint8Array;
  payload: Uint8Array;
  /** Called once the frame is with the port. */
  after: (() => void) | undefined;
}

export interface OutStreamOptions {
  kind: typeof FRAME_KIND.requestBody | typeof FRAME_KIND.responseBody;
  /** Called when `push` has returned false and there is room again. */
  writable?: () => void;
  /**
   * Everything is kept until `discard`, acknowledged or not, and its producer goes on up to so many bytes: the other
   * side may come back without what it had, and nobody reads along.
   */
  keep_bytes?: number;
  /** Its bytes begin here: those before are with the other side already. */
  from?: number;
}

/** A stream that has ended, to be sent again by another process. */
export interface WholeStream {
  readonly head: Uint8Array;
  readonly body: Uint8Array;
  readonly complete: boolean;
}

const EMPTY = new Uint8Array(0);
/** Small pieces that wait together travel in one frame, up to this much; larger ones are not worth a copy. */
const JOIN_MAX_BYTES = 16 * 1024;

export class OutStream {
  readonly #kind: OutStreamOptions['kind'];
  readonly #writable: (() => void) | undefined;
  readonly #keep_bytes: number | undefined;
  #window: SendWindow = streamWindow();
  /** Unacknowledged pieces; the first begins at `#kept_from`. */
  #pieces: Uint8Array[] = [];
  #first_piece = 0;
  #kept_from = 0;
  /** Where the next frame begins: this piece, from this byte in it. */
  #send_piece = 0;
  #send_at = 0;
  #length = 0;
  #head: Uint8Array | undefined;
  #head_sent = true;
  #end: { outcome: number; after: (() => void) | undefined } | undefined;
  #end_sent = false;
  #number: number | undefined;
  #notify: ((stream: OutStream) => void) | undefined;
  #in_turn = false;
  #wakes_soon = false;
  #paused = false;

  constructor(options: OutStreamOptions) {
    this.#kind = options.kind;
    this.#writable = options.writable;
    this.#keep_bytes = options.keep_bytes;
    const from = options.from ?? 0;
    this.#length = from;
    this.#kept_from = from;
    this.#window = streamWindow(from);
  }

  /** Body bytes so far. */
  get length(): number {
    return this.#length;
  }

  get acked_offset(): number {
    return this.#window.acked;
  }

  get unacked_bytes(): number {
    return this.#length - this.#window.acked;
  }

  get ended(): boolean {
    return this.#end !== undefined;
  }

  get end_sent(): boolean {
    return this.#end_sent;
  }

  /** The frame before the body, once; it is kept, since a reconnect may ask for it again. */
  head(payload: Uint8Array): void {
    this.#head = payload;
    this.#head_sent = false;
    this.#wake();
  }

  /**
   * Takes body bytes over: the caller does not change them afterwards.
   * @returns whether the producer may go on; if not, `writable` is called
   */
  push(bytes: Uint8Array): boolean {
    if (this.#end !== undefined) throw new Error('A stream that has ended takes no more bytes.');
    if (bytes.byteLength > 0) {
      this.#pieces.push(bytes);
      this.#length += bytes.byteLength;
      this.#wakeSoon();
    }
    if (this.#hasRoom()) return true;
    this.#paused = true;
    return false;
  }

  /**
   * No more bytes come. The end frame follows the last of them.
   * @param after called when the end frame is with the port, again after each reconnect that repeats it
   */
  end(outcome: 'complete' | 'cut', after?: () => void): void {
    if (this.#end !== undefined) return;
    this.#end = { outcome: END_OUTCOME[outcome], after };
    this.#wake();
  }

  /** All of it, where all of it is kept and it has ended; undefined once it is discarded. */
  kept(): WholeStream | undefined {
    if (this.#keep_bytes === undefined || this.#end === undefined || this.#head === undefined)
      return undefined;
    const body = Buffer.concat(this.#pieces, this.#length);
    return { head: this.#head, body, complete: this.#end.outcome === END_OUTCOME.complete };
  }

  /** Forgets everything; the stream's attempt is over. */
  discard(): void {
    this.leave();
    this.#pieces = [];
    this.#first_piece = 0;
    this.#send_piece = 0;
    this.#send_at = 0;
    this.#kept_from = this.#length;
    this.#head = undefined;
    this.#head_sent = true;
    this.#end ??= { outcome: END_OUTCOME.cut, after: undefined };
    this.#end_sent = true;
    this.#paused = false;
    this.#window = streamWindow(this.#length);
  }

  // ── For the outbox ──

  /** Goes back, or forward, to what the other side has. @returns false when it cannot be served from there */
  resumeFrom(acked_offset: number, head_received: boolean): boolean {
    if (acked_offset < this.#kept_from || acked_offset > this.#length) return false;
    this.leave();
    this.#free(acked_offset);
    this.#window = streamWindow(acked_offset);
    this.#sendFrom(acked_offset);
    this.#head_sent = head_received || this.#head === undefined;
    this.#end_sent = false;
    return true;
  }

  #sendFrom(offset: number): void {
    this.#send_piece = this.#first_piece;
    this.#send_at = offset - this.#kept_from;
    while (this.#send_at > 0 && this.#send_at >= (this.#pieces[this.#send_piece]?.byteLength ?? Infinity)) {
      this.#send_at -= this.#pieces[this.#send_piece]!.byteLength;
      this.#send_piece++;
    }
  }

  join(number: number, notify: (stream: OutStream) => void): void {
    this.#number = number;
    this.#notify = notify;
    this.#in_turn = false;
    this.#wake();
    this.#resumeProducer();
  }

  leave(): void {
    this.#number = undefined;
    this.#notify = undefined;
    this.#in_turn = false;
  }

  acknowledge(acked_offset: number): void {
    const before = this.#window;
    this.#window = acknowledged(before, acked_offset);
    if (this.#window === before) return;
    this.#free(this.#window.acked);
    this.#wake();
    this.#resumeProducer();
  }

  /** Whether there is a frame that its own window lets go. */
  hasMore(): boolean {
    this.#in_turn = this.#number !== undefined && this.#sendable();
    return this.#in_turn;
  }

  /**
   * The next frame, at most `free` bytes of payload, of body bytes at most `most`. `idle`: nothing to send now (it comes back through `notify`);
   * `blocked`: there is, but the connection has too little room for it.
   */
  takeFrame(free: number, most = FRAME_PAYLOAD_MAX_BYTES): TakenFrame | 'idle' | 'blocked' {
    this.#in_turn = false;
    const number = this.#number;
    if (number === undefined || !this.#sendable()) return 'idle';
    const frame = this.#nextFrame(number, free, most);
    if (frame === 'blocked') this.#in_turn = true;
    return frame;
  }

  #nextFrame(number: number, free: number, most: number): TakenFrame | 'blocked' {
    if (!this.#head_sent && this.#head !== undefined) {
      if (this.#head.byteLength > free) return 'blocked';
      this.#head_sent = true;
      const header = encodeFrameHeader(FRAME_KIND.responseHead, number, 0);
      return { header, payload: this.#head, after: undefined };
    }
    if (this.#window.sent < this.#length) {
      const wanted = Math.min(most, room(this.#window), this.#length - this.#window.sent);
      // A sliver of a frame would cost more than the wait: the other side acknowledges every 64 KiB.
      if (free < Math.min(wanted, 1024)) return 'blocked';
      const payload = this.#takeBytes(Math.min(wanted, free));
      const header = encodeFrameHeader(this.#kind, number, this.#window.sent);
      this.#window = sent(this.#window, payload.byteLength);
      return { header, payload, after: undefined };
    }
    if (free < 1) return 'blocked';
    const end = this.#end!;
    this.#end_sent = true;
    const header = encodeFrameHeader(FRAME_KIND.end, number, this.#length);
    return { header, payload: Uint8Array.of(end.outcome), after: end.after };
  }

  /** Takes up to `most` bytes: part of one piece, or several small ones in one copy. */
  #takeBytes(most: number): Uint8Array {
    const piece = this.#pieces[this.#send_piece]!;
    const first = piece.subarray(this.#send_at, this.#send_at + most);
    this.#advance(piece, first.byteLength);
    let next = this.#pieces[this.#send_piece];
    let total = first.byteLength;
    const limit = Math.min(most, JOIN_MAX_BYTES);
    if (next === undefined || this.#send_at > 0 || total + next.byteLength > limit) return first;
    const parts = [first];
    while (next !== undefined && total + next.byteLength <= limit) {
      parts.push(next);
      total += next.byteLength;
      this.#advance(next, next.byteLength);
      next = this.#pieces[this.#send_piece];
    }
    return Buffer.concat(parts, total);
  }

  #advance(piece: Uint8Array, count: number): void {
    this.#send_at += count;
    if (this.#send_at < piece.byteLength) return;
    this.#send_piece++;
    this.#send_at = 0;
  }

  #hasRoom(): boolean {
    return this.#keep_bytes === undefined
      ? this.unacked_bytes < STREAM_WINDOW_BYTES
      : this.#length < this.#keep_bytes;
  }

  /** Lets go of whole pieces before `offset`. */
  #free(offset: number): void {
    if (this.#keep_bytes !== undefined) return;
    while (this.#first_piece < this.#pieces.length) {
      const size = this.#pieces[this.#first_piece]!.byteLength;
      if (this.#kept_from + size > offset) break;
      this.#pieces[this.#first_piece] = EMPTY;
      this.#first_piece++;
      this.#kept_from += size;
    }
    if (this.#first_piece > 64 || this.#first_piece === this.#pieces.length) {
      this.#pieces.splice(0, this.#first_piece);
      this.#send_piece = Math.max(0, this.#send_piece - this.#first_piece);
      this.#first_piece = 0;
    }
  }

  #sendable(): boolean {
    if (!this.#head_sent) return true;
    if (this.#window.sent < this.#length) return room(this.#window) > 0;
    return this.#end !== undefined && !this.#end_sent;
  }

  #wake(): void {
    if (this.#in_turn || this.#notify === undefined || !this.#sendable()) return;
    this.#in_turn = true;
    this.#notify(this);
  }

  /** Events that a backend's one packet has brought, and which are pushed one after the other, go in one frame. */
  #wakeSoon(): void {
    if (this.#wakes_soon || this.#notify === undefined) return;
    this.#wakes_soon = true;
    queueMicrotask(() => {
      this.#wakes_soon = false;
      this.#wake();
    });
  }

  #resumeProducer(): void {
    if (!this.#paused || !this.#hasRoom()) return;
    this.#paused = false;
    this.#writable?.();
  }
}
