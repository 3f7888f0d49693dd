import { FRAME_MAX_BYTES } from '@flotilla/protocol';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  ACK_EVERY_BYTES,
  acknowledged,
  CONNECTION_WINDOW_MAX_BYTES,
  CONNECTION_WINDOW_MIN_BYTES,
  connectionWindow,
  FrameDelay,
  linkAcknowledged,
  received,
  receiveWindow,
  room,
  roundTrip,
  sent,
  streamWindow,
  unacked,
} from './send-window.ts';

const step = fc.oneof(
  fc.record({ kind: fc.constant('send' as const), bytes: fc.integer({ min: 13, max: FRAME_MAX_BYTES }) }),
  fc.record({ kind: fc.constant('deliver' as const), delay_ms: fc.integer({ min: 0, max: 2500 }) }),
  fc.record({ kind: fc.constant('beat' as const), rtt_ms: fc.integer({ min: 0, max: 5000 }) }),
  fc.record({ kind: fc.constant('ack' as const), acked: fc.nat(20_000_000) }),
);

const H = 5000;
const LINE_FRAME_BYTES = 16 * 1024;
const LINE_MS = 30_000;

/** A sender that always has more, and a line of some bytes a millisecond; the worst delay is taken after 5 s. */
class Line {
  worst_ms = 0;
  delivered = 0;
  #now = 0;
  #free_at = 0;
  #sender = connectionWindow();
  #receiver = receiveWindow();
  readonly #delay = new FrameDelay();
  readonly #under_way: { at: number; bytes: number }[] = [];
  readonly #acks: { at: number; received: number }[] = [];
  readonly #rate: number;
  readonly #base_ms: number;

  constructor(rate: number, base_ms: number) {
    this.#rate = rate;
    this.#base_ms = base_ms;
  }

  step(): void {
    this.#now++;
    while (this.#under_way.length > 0 && this.#under_way[0]!.at <= this.#now) {
      const { bytes } = this.#under_way.shift()!;
      this.delivered += bytes;
      const next = received(this.#receiver, bytes);
      this.#receiver = next.window;
      if (next.ack !== undefined) this.#acks.push({ at: this.#now + this.#base_ms, received: next.ack });
    }
    while (this.#acks.length > 0 && this.#acks[0]!.at <= this.#now) {
      const { received: count } = this.#acks.shift()!;
      this.#sender = linkAcknowledged(this.#sender, count, this.#delay.acknowledged(count, this.#now), H);
    }
    while (room(this.#sender) >= LINE_FRAME_BYTES) {
      this.#sender = sent(this.#sender, LINE_FRAME_BYTES);
      this.#delay.sent(LINE_FRAME_BYTES, () => this.#now);
      this.#free_at = Math.max(this.#now, this.#free_at) + LINE_FRAME_BYTES / this.#rate;
      const at = this.#free_at + this.#base_ms;
      this.#under_way.push({ at, bytes: LINE_FRAME_BYTES });
      if (this.#now > 5000) this.worst_ms = Math.max(this.worst_ms, at - this.#now);
    }
  }
}

describe('connection window', () => {
  test('is never overrun, stays within its bounds, and a full frame fits again once everything has arrived', () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 300 }), (steps) => {
        let sender = connectionWindow();
        let receiver = receiveWindow();
        let under_way: number[] = [];
        let overrun = false;
        let moved_by_stale = false;
        const deliver = (delay_ms: number) => {
          for (const bytes of under_way) {
            const next = received(receiver, bytes);
            receiver = next.window;
            if (next.ack !== undefined) sender = linkAcknowledged(sender, next.ack, delay_ms, H);
          }
          under_way = [];
        };
        for (const action of steps) {
          const before = sender;
          if (action.kind === 'send' && action.bytes <= room(sender)) {
            sender = sent(sender, action.bytes);
            under_way.push(action.bytes);
            overrun ||= unacked(sender) > sender.window;
          }
          if (action.kind === 'deliver') deliver(action.delay_ms);
          if (action.kind === 'beat') sender = roundTrip(sender, action.rtt_ms, H);
          // A stale acknowledgement, as after a repeat, never takes room away.
          if (action.kind === 'ack' && action.acked <= before.acked) {
            moved_by_stale ||= room(linkAcknowledged(before, action.acked, 0, H)) !== room(before);
          }
          expect(sender.window).toBeGreaterThanOrEqual(CONNECTION_WINDOW_MIN_BYTES);
          expect(sender.window).toBeLessThanOrEqual(CONNECTION_WINDOW_MAX_BYTES);
          expect(sender.acked).toBeLessThanOrEqual(sender.sent);
        }
        deliver(0);
        expect({ overrun, moved_by_stale }).toEqual({ overrun: false, moved_by_stale: false });
        expect(room(sender)).toBeGreaterThanOrEqual(FRAME_MAX_BYTES);
      }),
    );
  });

  test('halves on a beat slower than a quarter interval, and grows only after a quick one', () => {
    let window = sent(connectionWindow(), 200_000);
    window = roundTrip(window, 1251, 5000);
    expect(window.window).toBe(128 * 1024);
    expect(linkAcknowledged(window, 100_000, 0, H).window).toBe(128 * 1024);
    window = roundTrip(window, 1250, H);
    expect(linkAcknowledged(window, 100_000, 0, H).window).toBe(192 * 1024);
  });

  test('follows the delay of frames between beats: grows, stays, or is halved once for what was under way', () => {
    const full = sent(connectionWindow(), 256 * 1024);
    expect(linkAcknowledged(full, 65_536, 625, H).window).toBe(320 * 1024);
    expect(linkAcknowledged(full, 65_536, 626, H).window).toBe(256 * 1024);
    let window = linkAcknowledged(full, 65_536, 1251, H);
    expect(window.window).toBe(128 * 1024);
    window = { ...window, window: 512 * 1024 };
    window = linkAcknowledged(window, 256 * 1024, 2000, H);
    expect(window.window).toBe(512 * 1024);
    window = linkAcknowledged(sent(window, 100_000), 256 * 1024 + 100_000, 2000, H);
    expect(window.window).toBe(256 * 1024);
  });

  test('on a saturated line of whatever rate a beat soon waits about a quarter interval at most, and the line is used', () => {
    fc.assert(
      fc.property(fc.integer({ min: 30, max: 20_000 }), fc.integer({ min: 0, max: 100 }), (rate, base_ms) => {
        const line = new Line(rate, base_ms);
        for (let ms = 0; ms < LINE_MS; ms++) line.step();
        // Below that rate even the least window takes longer.
        const longest_ms = Math.max(H / 4, CONNECTION_WINDOW_MIN_BYTES / rate);
        // The window grows by whole acknowledgements, and the last one that told of a quick line is late by as much.
        expect(line.worst_ms).toBeLessThan(longest_ms + 2 * base_ms + (2 * ACK_EVERY_BYTES) / rate + 2);
        expect(line.delivered).toBeGreaterThan(0.75 * rate * LINE_MS);
      }),
      { numRuns: 20, examples: [[315, 0]] },
    );
  });

  test('refuses to be overrun', () => {
    expect(() => sent(connectionWindow(), 256 * 1024 + 1)).toThrow(RangeError);
  });
});

describe('stream window', () => {
  test('an acknowledgement frees what it covers, and one of unsent bytes no more than was sent', () => {
    fc.assert(
      fc.property(fc.nat(2 ** 40), fc.nat(256 * 1024), fc.nat(2 ** 41), (offset, bytes, acked) => {
        const window = acknowledged(sent(streamWindow(offset), bytes), acked);
        expect(window.acked).toBe(Math.max(offset, Math.min(acked, offset + bytes)));
        expect(room(window)).toBe(256 * 1024 - unacked(window));
      }),
    );
  });

  test('a receiver owes less than 64 KiB at any moment', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(FRAME_MAX_BYTES)), (sizes) => {
        let window = receiveWindow(7);
        let told = 7;
        for (const size of sizes) {
          const next = received(window, size);
          window = next.window;
          told = next.ack ?? told;
          expect(window.received - told).toBeLessThan(ACK_EVERY_BYTES);
        }
      }),
    );
  });
});
