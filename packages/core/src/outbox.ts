import { FRAME_HEADER_BYTES } from '@flotilla/protocol';
import {
  type ConnectionWindow,
  connectionWindow,
  FrameDelay,
  linkAcknowledged,
  room,
  roundTrip,
  sent,
} from './send-window.ts';
import { ChurnMap } from './churn-map.ts';
import type { OutStream } from './out-stream.ts';

/**
 * The sending half of one connection of a link, the same on both sides. Text goes out at once. Binary frames go out
 * within the stream's window and the connection's; streams with something to send take turns, a frame each.
 *
 * A stream outlives the connection: it is `attach`ed under a number that this connection knows, and let go of by
 * `detach` (its attempt is over) or `close` (the connection is). What it holds and what was acknowledged is its own.
 *
 * Everything handed to one outbox within a turn of the event loop becomes one write if the port corks.
 */
export interface LinkPort {
  sendText(text: string): void;
  /** Text that may wait a few milliseconds to travel with what follows; it keeps its place before that. */
  sendPatiently?(text: string): void;
  /** One binary frame; neither part may be changed afterwards, and the port keeps them no longer than this turn. */
  sendBinary(header: Uint8Array, payload: Uint8Array): void;
  /** Around what is sent in one go; a port may as well cork by itself for a whole turn. */
  cork?(): void;
  uncork?(): void;
}

/** Of a turn while others wait: on a slow line many large frames would keep a new stream's first one for seconds. */
const TURN_MAX_BYTES = 16 * 1024;

export class Outbox {
  readonly #port: LinkPort;
  readonly #now_ms: () => number;
  readonly #delay = new FrameDelay();
  #window: ConnectionWindow = connectionWindow();
  readonly #streams = new ChurnMap<number, OutStream>();
  /** Streams that may have a frame to send, in the order of their turns. */
  #turns: OutStream[] = [];
  #next_turn = 0;
  #pumping = false;
  #closed = false;

  constructor(port: LinkPort, now_ms: () => number) {
    this.#port = port;
    this.#now_ms = now_ms;
  }

  get window(): ConnectionWindow {
    return this.#window;
  }

  get streams(): number {
    return this.#streams.size;
  }

  /** Control messages never wait for a window. */
  sendText(text: string): void {
    if (!this.#closed) this.#port.sendText(text);
  }

  /** Text that nobody waits for: it may travel with what follows, where the port can do that. */
  sendPatiently(text: string): void {
    if (this.#closed) return;
    if (this.#port.sendPatiently === undefined) this.#port.sendText(text);
    else this.#port.sendPatiently(text);
  }

  /**
   * Takes a stream up under this connection's number for it, from what the other side says it has.
   * @returns false when that cannot be continued: bytes before it are gone, or after it were never made
   */
  attach(number: number, stream: OutStream, from: { acked_offset: number; head_received: boolean }): boolean {
    if (this.#closed || !stream.resumeFrom(from.acked_offset, from.head_received)) return false;
    const former = this.#streams.get(number);
    if (former !== undefined && former !== stream) former.leave();
    this.#streams.set(number, stream);
    stream.join(number, (ready) => this.#ready(ready));
    return true;
  }

  /** The stream's attempt is over here: nothing of it is sent any more. */
  detach(number: number): void {
    this.#streams.get(number)?.leave();
    this.#streams.delete(number);
  }

  /** `stream.credit` from the other side; a number that is not known belongs to a stream that has ended. */
  credit(number: number, acked_offset: number): void {
    this.#streams.get(number)?.acknowledge(acked_offset);
  }

  /** `link.ack` from the other side. */
  linkAck(received: number, heartbeat_ms: number): void {
    const delay_ms = this.#delay.acknowledged(received, this.#now_ms());
    this.#window = linkAcknowledged(this.#window, received, delay_ms, heartbeat_ms);
    this.#pump();
  }

  /** A beat came back after `rtt_ms`. */
  roundTrip(rtt_ms: number, heartbeat_ms: number): void {
    this.#window = roundTrip(this.#window, rtt_ms, heartbeat_ms);
  }

  /** The connection is gone. Streams keep what was not acknowledged, for the next one. */
  close(): void {
    this.#closed = true;
    for (const stream of this.#streams.values()) stream.leave();
    this.#streams.clear();
    this.#turns = [];
    this.#next_turn = 0;
  }

  #ready(stream: OutStream): void {
    this.#turns.push(stream);
    this.#pump();
  }

  #pump(): void {
    // A stream that becomes ready inside its own callback is served by the loop that called it.
    if (this.#pumping || this.#closed || this.#next_turn === this.#turns.length) return;
    this.#pumping = true;
    this.#port.cork?.();
    try {
      while (this.#next_turn < this.#turns.length) {
        const free = room(this.#window) - FRAME_HEADER_BYTES;
        if (free < 0) break;
        const stream = this.#turns[this.#next_turn]!;
        const others_wait = this.#next_turn + 1 < this.#turns.length;
        const frame = stream.takeFrame(free, others_wait ? TURN_MAX_BYTES : undefined);
        if (frame === 'blocked') break;
        this.#next_turn++;
        if (frame === 'idle') continue;
        const size = FRAME_HEADER_BYTES + frame.payload.byteLength;
        this.#window = sent(this.#window, size);
        this.#delay.sent(size, this.#now_ms);
        this.#port.sendBinary(frame.header, frame.payload);
        if (stream.hasMore()) this.#turns.push(stream);
        frame.after?.();
        if (this.#closed) return;
      }
    } finally {
      this.#pumping = false;
      this.#forgetPastTurns();
      this.#port.uncork?.();
    }
  }

  #forgetPastTurns(): void {
    if (this.#next_turn === this.#turns.length) {
      this.#turns.length = 0;
      this.#next_turn = 0;
    } else if (this.#next_turn > 256) {
      this.#turns = this.#turns.slice(this.#next_turn);
      this.#next_turn = 0;
    }
  }
}
