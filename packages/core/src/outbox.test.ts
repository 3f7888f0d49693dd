import { decodeFrame, FRAME_KIND, FRAME_PAYLOAD_MAX_BYTES, type Frame } from '@flotilla/protocol';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Outbox } from './outbox.ts';
import { OutStream } from './out-stream.ts';
import { received, receiveWindow, STREAM_WINDOW_BYTES } from './send-window.ts';

/** The far end of a wire: keeps what arrives until it is asked to take it. */
class Wire {
  readonly log: (string | Frame)[] = [];
  bytes = 0;
  corks = 0;
  depth = 0;
  writes = 0;
  sendText(text: string): void {
    this.log.push(text);
    if (this.depth === 0) this.writes++;
  }
  sendBinary(header: Uint8Array, payload: Uint8Array): void {
    const frame = Buffer.concat([header, payload]);
    this.bytes += frame.length;
    this.log.push(decodeFrame(frame));
    if (this.depth === 0) this.writes++;
  }
  cork(): void {
    this.depth++;
  }
  uncork(): void {
    this.depth--;
    this.writes++;
  }
  get frames(): Frame[] {
    return this.log.filter((entry) => typeof entry !== 'string');
  }
}

const responses = () => new OutStream({ kind: FRAME_KIND.responseBody });
const PATTERN = Buffer.alloc(500_000, Buffer.from(Array.from({ length: 251 }, (_, index) => index)));
const patterned = (offset: number, length: number) => PATTERN.subarray(offset % 251, (offset % 251) + length);
function ensure(holds: boolean, what: string): void {
  if (!holds) throw new Error(what);
}

describe('Outbox', () => {
  test('a small answer is head, body, end and its message in this order and in one write', () => {
    const wire = new Wire();
    const outbox = new Outbox(wire, () => 0);
    const stream = responses();
    outbox.attach(4, stream, { acked_offset: 0, head_received: true });
    wire.cork();
    stream.head(Buffer.from('{"status":200}'));
    stream.push(Buffer.from('hello'));
    stream.end('complete', () => outbox.sendText('completed'));
    wire.uncork();
    expect(wire.log.map((entry) => (typeof entry === 'string' ? entry : entry.kind))).toEqual([
      2,
      3,
      4,
      'completed',
    ]);
    expect(wire.frames.map((frame) => [frame.stream, frame.offset])).toEqual([
      [4, 0],
      [4, 0],
      [4, 5],
    ]);
    expect(wire.depth).toBe(0);
  });

  test('streams take turns of 16 KiB where others wait, of a whole frame alone, and text never waits', () => {
    const wire = new Wire();
    const outbox = new Outbox(wire, () => 0);
    const filler = responses();
    filler.push(new Uint8Array(FRAME_PAYLOAD_MAX_BYTES * 4));
    outbox.attach(9, filler, { acked_offset: 0, head_received: true });
    const before = wire.frames.length;
    expect(before).toBe(4);
    for (const number of [1, 2, 3]) {
      const stream = responses();
      stream.push(new Uint8Array(FRAME_PAYLOAD_MAX_BYTES * 2));
      outbox.attach(number, stream, { acked_offset: 0, head_received: true });
    }
    outbox.linkAck(64 * 1024, 5000);
    outbox.sendText('beat');
    expect(wire.log.at(-1)).toBe('beat');
    while (outbox.window.acked < wire.bytes)
      outbox.linkAck(Math.min(wire.bytes, outbox.window.acked + 64 * 1024), 5000);
    const turns = wire.frames.slice(before);
    expect(turns.map((frame) => frame.stream)).toEqual(turns.map((_, index) => 1 + (index % 3)));
    expect(Math.max(...turns.map((frame) => frame.payload.length))).toBe(16 * 1024);
  });

  test('a reader is paused at 256 KiB unacknowledged and called when there is room', () => {
    let calls = 0;
    const stream = new OutStream({ kind: FRAME_KIND.responseBody, writable: () => calls++ });
    expect(stream.push(new Uint8Array(STREAM_WINDOW_BYTES - 1))).toBe(true);
    expect(stream.push(new Uint8Array(1))).toBe(false);
    const outbox = new Outbox(new Wire(), () => 0);
    outbox.attach(1, stream, { acked_offset: 0, head_received: true });
    expect(calls).toBe(0);
    outbox.credit(1, 65_536);
    outbox.credit(1, 65_536);
    outbox.credit(1, 80_000);
    expect(calls).toBe(1);
    expect(stream.unacked_bytes).toBe(STREAM_WINDOW_BYTES - 80_000);
  });

  test('a stream cannot be continued from bytes that are gone or were never made', () => {
    const outbox = new Outbox(new Wire(), () => 0);
    const stream = responses();
    stream.push(new Uint8Array(100));
    stream.push(new Uint8Array(100));
    expect(outbox.attach(1, stream, { acked_offset: 150, head_received: false })).toBe(true);
    const next = new Outbox(new Wire(), () => 0);
    expect(next.attach(1, stream, { acked_offset: 99, head_received: false })).toBe(false);
    expect(next.attach(1, stream, { acked_offset: 201, head_received: false })).toBe(false);
    expect(next.attach(1, stream, { acked_offset: 100, head_received: false })).toBe(true);
  });

  test('after its end is sent a stream is repeated only by a reconnect, message included', () => {
    const first = new Wire();
    const stream = responses();
    let told = 0;
    stream.head(Buffer.from('head'));
    stream.push(Buffer.from('abcdef'));
    stream.end('cut', () => told++);
    const outbox = new Outbox(first, () => 0);
    outbox.attach(9, stream, { acked_offset: 0, head_received: false });
    expect([told, first.frames.length]).toEqual([1, 3]);
    outbox.close();
    const second = new Wire();
    new Outbox(second, () => 0).attach(2, stream, { acked_offset: 4, head_received: true });
    expect(told).toBe(2);
    expect(
      second.frames.map((frame) => [frame.kind, frame.offset, Buffer.from(frame.payload).toString()]),
    ).toEqual([
      [3, 4, 'ef'],
      [4, 6, '\u0001'],
    ]);
  });

  test('pieces that are pushed in one turn go in one frame, and an end does not wait for the next turn', async () => {
    const wire = new Wire();
    const outbox = new Outbox(wire, () => 0);
    const stream = responses();
    outbox.attach(4, stream, { acked_offset: 0, head_received: true });
    for (const event of ['one', 'two', 'three']) stream.push(Buffer.from(event));
    await Promise.resolve();
    const payloads = () => wire.frames.map(({ payload }) => Buffer.from(payload).toString());
    expect(payloads()).toEqual(['onetwothree']);
    stream.push(Buffer.from('four'));
    stream.end('complete');
    expect(payloads()).toEqual(['onetwothree', 'four', '\u0000']);
  });

  test('a discarded stream sends nothing more and frees the turn of the others', async () => {
    const wire = new Wire();
    const outbox = new Outbox(wire, () => 0);
    const large = responses();
    large.push(new Uint8Array(STREAM_WINDOW_BYTES));
    outbox.attach(1, large, { acked_offset: 0, head_received: true });
    const sent_before = wire.frames.length;
    large.discard();
    outbox.detach(1);
    const other = responses();
    outbox.attach(2, other, { acked_offset: 0, head_received: true });
    other.push(Buffer.from('x'));
    await Promise.resolve();
    outbox.linkAck(wire.bytes, 5000);
    expect(wire.frames.slice(sent_before).map((frame) => frame.stream)).toEqual([2]);
    expect(outbox.streams).toBe(1);
  });
});

type Action =
  | { kind: 'push'; stream: number; bytes: number }
  | { kind: 'end' | 'consume'; stream: number }
  | { kind: 'deliver' | 'reconnect' }
  | { kind: 'beat'; rtt_ms: number };
const STREAMS = 3;
const which = fc.nat(STREAMS - 1);
const action: fc.Arbitrary<Action> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constant('push'),
      stream: which,
      bytes: fc.oneof(fc.nat(300), fc.nat(150_000)),
    }),
  },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('deliver') }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('consume'), stream: which }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('end'), stream: which }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('reconnect') }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('beat'), rtt_ms: fc.nat(3000) }) },
) as fc.Arbitrary<Action>;

describe('Outbox over a link that breaks', () => {
  test('every byte arrives once and in order, windows are kept, and everything ends', () => {
    fc.assert(
      fc.property(fc.array(action, { maxLength: 120 }), (actions) => {
        let wire = new Wire();
        let outbox = new Outbox(wire, () => 0);
        let generation = 0;
        let receiver = receiveWindow();
        const streams = Array.from({ length: STREAMS }, () => ({
          out: responses(),
          got: 0,
          consumed: 0,
          heads: 0,
          ended: false,
        }));
        const numberOf = (index: number) => generation * 10 + index;
        const attachAll = () => {
          for (const [index, stream] of streams.entries()) {
            const from = { acked_offset: stream.consumed, head_received: stream.heads > 0 };
            stream.got = stream.consumed;
            expect(outbox.attach(numberOf(index), stream.out, from)).toBe(true);
          }
        };
        const deliver = () => {
          const arrived = wire.log.splice(0);
          for (const entry of arrived) {
            if (typeof entry === 'string') continue;
            const stream = streams[entry.stream - generation * 10]!;
            if (entry.kind === FRAME_KIND.responseHead) stream.heads++;
            if (entry.kind === FRAME_KIND.responseBody) {
              ensure(entry.offset === stream.got, 'a byte was repeated or left out');
              ensure(patterned(entry.offset, entry.payload.length).equals(entry.payload), 'a byte changed');
              stream.got += entry.payload.length;
              ensure(stream.got - stream.consumed <= STREAM_WINDOW_BYTES, 'the stream window was overrun');
            }
            if (entry.kind === FRAME_KIND.end) {
              ensure(entry.offset === stream.got, 'the end came before the bytes');
              stream.ended = true;
            }
            const next = received(receiver, 13 + entry.payload.length);
            receiver = next.window;
            if (next.ack !== undefined) outbox.linkAck(next.ack, 5000);
          }
        };
        const consume = (index: number) => {
          const stream = streams[index]!;
          stream.consumed = stream.got;
          outbox.credit(numberOf(index), stream.consumed);
        };
        for (const stream of streams) stream.out.head(Buffer.from('head'));
        attachAll();
        for (const step of actions) {
          const sent_before = outbox.window.sent;
          if (step.kind === 'push') {
            const { out } = streams[step.stream]!;
            if (!out.ended && out.unacked_bytes < STREAM_WINDOW_BYTES)
              out.push(patterned(out.length, step.bytes));
          } else if (step.kind === 'end') streams[step.stream]!.out.end('complete');
          else if (step.kind === 'consume') consume(step.stream);
          else if (step.kind === 'deliver') deliver();
          else if (step.kind === 'beat') outbox.roundTrip(step.rtt_ms, 5000);
          else {
            outbox.close();
            generation++;
            wire = new Wire();
            outbox = new Outbox(wire, () => 0);
            receiver = receiveWindow();
            attachAll();
          }
          const { window } = outbox;
          const within = window.sent - window.acked <= window.window;
          ensure(within || window.sent <= sent_before, 'the connection window was overrun');
          expect(outbox.window.sent).toBe(wire.bytes);
        }
        for (const { out } of streams) out.end('complete');
        for (let round = 0; round < 100 && streams.some((stream) => !stream.ended); round++) {
          deliver();
          for (const index of streams.keys()) consume(index);
        }
        for (const stream of streams) {
          expect(stream.ended).toBe(true);
          expect(stream.got).toBe(stream.out.length);
          expect(stream.heads).toBeGreaterThanOrEqual(1);
        }
      }),
      { numRuns: 300 },
    );
  });
});
