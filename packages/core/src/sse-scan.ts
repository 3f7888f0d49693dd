import type { TokenUsage } from '@flotilla/protocol';
import { asBuffer } from './json-string.ts';
import { isSound, readEvent } from './sse-event.ts';

/**
 * A scanner over the bytes of an event stream, in chunks of any size. It passes bytes through untouched and notes what
 * matters on the way. Lines end with LF, CRLF or CR; an event ends with an empty line.
 *
 * What comes in goes out of the same call, with two exceptions, each asked for:
 * - `drop_usage_event`: the usage-only event is left out whole, so the bytes of one incomplete event wait, 8 KiB at
 *   most; a longer one is not a usage event and goes on.
 * - `hold_done`: everything from the `data: [DONE]` event on stays here until `release`, and so does a last partial
 *   line that may still become it.
 *
 * State between two chunks: the incomplete event (`#carry`, to be read once it is whole), how far its last line agrees
 * with `data: [DONE]` (`#match`), and what has not gone out (`#held`).
 */
export interface SseScanOptions {
  drop_usage_event?: boolean;
  hold_done?: boolean;
  /** Look at every event, whether its data is JSON. */
  check_json?: boolean;
}

/** The most bytes of an incomplete event that wait when the usage-only event is to be dropped. */
export const SSE_HOLD_MAX_BYTES = 8 * 1024;
/** A longer event is passed on without being read. */
const EVENT_READ_MAX_BYTES = 2 * 1024 * 1024;
/** Of what comes after `[DONE]` this much is kept; no client reads any of it. */
const AFTER_DONE_MAX_BYTES = 64 * 1024;

const LF = 0x0a;
const CR = 0x0d;
const EMPTY = Buffer.alloc(0);

/** How far the line so far agrees with `data:`, some blanks, `[DONE]`. */
const PREFIX = Buffer.from('data:[DONE]');
const MATCH_START = 0;
const MATCH_COLON = 5;
const MATCH_DONE = PREFIX.length;
const MATCH_NEVER = -1;
const BLANKS_MAX = 16;
const BYTE_ORDER_MARK = [0xef, 0xbb, 0xbf];

export class SseScan {
  /** The last usage object seen. */
  usage: TokenUsage | undefined;
  /** A choice had a `finish_reason`. */
  finished = false;
  /** What an in-band error event said. */
  error: string | undefined;
  /** An event's data was no JSON; noted with `check_json` only. */
  unsound = false;
  /** Offset in the input where the event of `data: [DONE]` begins. */
  done_offset: number | undefined;
  /** Events with data, `[DONE]` not among them. */
  data_events = 0;
  content_bytes = 0;
  /** Bytes seen so far. */
  bytes = 0;

  readonly #drop: boolean;
  readonly #hold: boolean;
  readonly #check: boolean;
  #carry = EMPTY;
  #carried = 0;
  #event_start = 0;
  #event_has_data = false;
  /** The event is longer than what may wait, or be read. */
  #event_passed = false;
  #event_unread = false;
  #line_start = 0;
  #match = MATCH_START;
  #blanks = 0;
  #after_cr = false;
  #dropped_before_lf = false;
  #held: Buffer[] = [];
  #held_bytes = 0;

  constructor(options: SseScanOptions = {}) {
    this.#drop = options.drop_usage_event ?? false;
    this.#hold = options.hold_done ?? false;
    this.#check = options.check_json ?? false;
  }

  get done(): boolean {
    return this.done_offset !== undefined;
  }

  get held_bytes(): number {
    return this.#held_bytes;
  }

  /** @returns what goes on now, in order; pieces are views of the chunk where that is possible */
  push(chunk: Uint8Array): Uint8Array[] {
    if (chunk.byteLength === 0) return [];
    const bytes = asBuffer(chunk);
    if (this.#hold && this.done) {
      this.bytes += bytes.length;
      this.#keep(bytes);
      return [];
    }
    const out: Uint8Array[] = [];
    const rest = this.#scan(bytes, out);
    this.#emit(bytes, rest, out);
    return out;
  }

  /** The input has ended: @returns what still waited, without a usage-only event that lacks its last line. */
  finish(): Uint8Array[] {
    if (this.#carried > 0 && !(this.#hold && this.done)) {
      const dropped = this.#endEvent(EMPTY, 0, 0);
      if (dropped) return [];
    }
    return this.#hold && this.done ? [] : this.release();
  }

  /** @returns everything held back; the caller has decided that it may go. */
  release(): Uint8Array[] {
    const held = this.#held;
    this.#held = [];
    this.#held_bytes = 0;
    return held;
  }

  /**
   * Walks the lines of a chunk. What precedes a dropped event is put out on the way.
   * @returns the index in `bytes` before which everything was put out or dropped
   */
  #scan(bytes: Buffer, out: Uint8Array[]): number {
    const base = this.bytes;
    const length = bytes.length;
    this.bytes += length;
    let rest = 0;
    let line = 0;
    let event = 0;
    if (this.#after_cr) {
      this.#after_cr = false;
      if (bytes[0] === LF) {
        line = 1;
        this.#line_start = base + 1;
        if (this.#event_start === base) {
          event = 1;
          this.#event_start = base + 1;
          if (this.#dropped_before_lf) rest = 1;
        }
      }
      this.#dropped_before_lf = false;
    }
    // Where the next of each comes: found once, however many lines of the other kind precede it.
    let next_lf = -1;
    let next_cr = -1;
    while (line < length) {
      const was_open = this.#line_start < base + line;
      const open = this.#match >= MATCH_START && this.#match < MATCH_DONE;
      if (open && bytes[line] !== LF && bytes[line] !== CR) this.#matchLine(bytes, line);
      if (this.#hold && this.done) return rest;
      if (next_lf < line) next_lf = bytes[line] === LF ? line : indexOrEnd(bytes, LF, line);
      if (next_cr < line) next_cr = indexOrEnd(bytes, CR, line);
      const end = Math.min(next_lf, next_cr);
      if (end === length) break;
      let after = end + 1;
      if (bytes[end] === CR) {
        if (after === length) this.#after_cr = true;
        else if (bytes[after] === LF) after++;
      }
      if (end === line && !was_open) {
        const dropped = this.#endEvent(bytes, event, after);
        if (dropped) {
          if (event > rest) out.push(bytes.subarray(rest, event));
          rest = after;
          this.#dropped_before_lf = this.#after_cr;
        } else if (this.#held_bytes > 0) {
          // What waited belongs to the event that has just proved to be an ordinary one.
          out.push(...this.release());
        }
        event = after;
        this.#event_start = base + after;
      }
      line = after;
      this.#line_start = base + after;
      this.#match = MATCH_START;
      this.#blanks = 0;
    }
    if (event < length) this.#carryOn(bytes, event);
    return rest;
  }

  /** Follows the beginning of a line as far as it agrees with `data: [DONE]`. */
  #matchLine(bytes: Buffer, from: number): void {
    const first = this.#line_start === 0 ? BYTE_ORDER_MARK.indexOf(bytes[from]!) : -1;
    let at = from;
    // A byte order mark may stand before the first line; it is not part of it.
    while (first !== -1 && this.#match === MATCH_START && BYTE_ORDER_MARK.includes(bytes[at]!)) at++;
    for (; at < bytes.length; at++) {
      const byte = bytes[at]!;
      if (byte === PREFIX[this.#match]) {
        this.#match++;
        if (this.#match === MATCH_COLON) this.#event_has_data = true;
        if (this.#match === MATCH_DONE) {
          this.done_offset ??= this.#event_start;
          return;
        }
        continue;
      }
      const blank = byte === 0x20 || byte === 0x09;
      if (blank && this.#match === MATCH_COLON && this.#blanks < BLANKS_MAX) {
        this.#blanks++;
        continue;
      }
      this.#match = MATCH_NEVER;
      return;
    }
  }

  /** Keeps a copy of what is there of an incomplete event, to read it once it is whole. */
  #carryOn(bytes: Buffer, from: number): void {
    if (this.#event_unread) return;
    const length = bytes.length - from;
    if (this.#carried + length > EVENT_READ_MAX_BYTES) {
      this.#event_unread = true;
      this.#carry = EMPTY;
      this.#carried = 0;
      return;
    }
    if (this.#carried + length > this.#carry.length) {
      const larger = Buffer.allocUnsafe(Math.max(1024, 2 * (this.#carried + length)));
      this.#carry.copy(larger, 0, 0, this.#carried);
      this.#carry = larger;
    }
    bytes.copy(this.#carry, this.#carried, from);
    this.#carried += length;
  }

  /** Reads the event that ends at `bytes[after]`. @returns whether it is to be left out. */
  #endEvent(bytes: Buffer, from: number, after: number): boolean {
    let dropped = false;
    const is_done = this.done_offset === this.#event_start;
    if (this.#event_has_data && !is_done) this.data_events++;
    if (!this.#event_unread && !is_done) {
      let event = bytes;
      let start = from;
      let end = after;
      if (this.#carried > 0) {
        event = Buffer.concat([this.#carry.subarray(0, this.#carried), bytes.subarray(from, after)]);
        start = 0;
        end = event.length;
      }
      // What follows `[DONE]` is read by nobody, so nothing of it makes the stream wrong.
      if (this.#check && !this.done && this.#event_has_data && !isSound(event, start, end))
        this.unsound = true;
      const facts = readEvent(event, start, end);
      this.usage = facts.usage ?? this.usage;
      this.error = facts.error ?? this.error;
      this.finished ||= facts.finished;
      this.content_bytes += facts.content_bytes;
      dropped = this.#drop && facts.usage_only && !this.#event_passed;
    }
    if (dropped) this.release();
    if (this.#carry.length > 64 * 1024) this.#carry = EMPTY;
    this.#carried = 0;
    this.#event_has_data = false;
    this.#event_passed = false;
    this.#event_unread = false;
    return dropped;
  }

  /** Puts out what may go of `held` and `bytes[rest…]`, and keeps what may not. */
  #emit(bytes: Buffer, rest: number, out: Uint8Array[]): void {
    const base = this.bytes - bytes.length;
    let keep_from = this.bytes;
    if (this.#drop && !this.#event_passed && this.#event_start < this.bytes) {
      if (this.bytes - this.#event_start > SSE_HOLD_MAX_BYTES) this.#event_passed = true;
      else keep_from = this.#event_start;
    }
    if (this.#hold) {
      if (this.done_offset !== undefined) keep_from = Math.min(keep_from, this.done_offset);
      else if (this.#match > MATCH_START) keep_from = Math.min(keep_from, this.#line_start);
    }
    const cut = keep_from - base;
    if (cut >= 0 || this.#held_bytes === 0) out.push(...this.release());
    else this.#releaseUpTo(keep_from - (base - this.#held_bytes), out);
    const from = Math.max(rest, cut);
    if (from > rest) out.push(bytes.subarray(rest, from));
    if (from < bytes.length) this.#keep(bytes.subarray(from));
  }

  /** Puts out the first `count` bytes of what is held; none when it is not positive. */
  #releaseUpTo(count: number, out: Uint8Array[]): void {
    if (count <= 0) return;
    const all = Buffer.concat(this.release());
    out.push(all.subarray(0, count));
    this.#keep(all.subarray(count));
  }

  #keep(bytes: Buffer): void {
    if (this.done && this.#held_bytes + bytes.length > AFTER_DONE_MAX_BYTES) return;
    this.#held.push(Buffer.from(bytes));
    this.#held_bytes += bytes.length;
  }
}

function indexOrEnd(bytes: Buffer, byte: number, from: number): number {
  const found = bytes.indexOf(byte, from);
  return found === -1 ? bytes.length : found;
}
