import { type Bus, type BusListener, OutStream } from '@flotilla/core';
import { ManualClock } from '@flotilla/core/testing';
import { FRAME_KIND } from '@flotilla/protocol';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type Channel, openChannel } from './channel.ts';
import type { PeerMessage } from './peer-messages.ts';

/** Two replicas on a bus that loses messages, in virtual time: one has a stream for the other. */
const BYTES = 400_000;
const OF = { job: 'job_a', attempt: 1, node: 'node_a', epoch: 1 };

interface Weather {
  /** Of each message, whether it is lost; over and over. */
  lost: boolean[];
  delay_ms: number;
  /** At this time one of them is gone for so long: nothing passes. */
  outage: { at_ms: number; for_ms: number };
}

const weather = fc.record({
  lost: fc.array(fc.oneof({ weight: 30, arbitrary: fc.constant(false) }, fc.constant(true)), {
    minLength: 40,
    maxLength: 400,
  }),
  delay_ms: fc.integer({ min: 0, max: 80 }),
  outage: fc.record({ at_ms: fc.integer({ min: 0, max: 2000 }), for_ms: fc.integer({ min: 0, max: 4000 }) }),
});

function lossyBus(clock: ManualClock, { lost, delay_ms, outage }: Weather) {
  const listeners = new Map<string, BusListener>();
  let sent = 0;
  const calm = () => clock.now_ms() > 20_000;
  return (own: string): Bus => ({
    connected: true,
    tell() {},
    send(to, data) {
      const now_ms = clock.now_ms();
      const out = now_ms >= outage.at_ms && now_ms < outage.at_ms + outage.for_ms;
      // After a while the weather is good: what is promised then is that everything arrives.
      if (!calm() && (out || lost[sent++ % lost.length]!)) return;
      clock.after(delay_ms, () => listeners.get(to)?.sent(own, data));
    },
    listen: (listener) => void listeners.set(own, listener),
    close: () => Promise.resolve(),
  });
}

/** @returns what the owner has, once it has seen the end */
function carry(conditions: Weather): { bytes: Buffer; whole: boolean; sessions: number } {
  const clock = new ManualClock();
  const busOf = lossyBus(clock, conditions);
  const [owner_bus, holder_bus] = [busOf('rep_o'), busOf('rep_h')];
  const received: Uint8Array[] = [];
  let length = 0;
  let whole = false;
  let holes = 0;
  let sessions = 0;
  const out = new OutStream({ kind: FRAME_KIND.responseBody });
  let stream = 0;

  const owner: Channel = openChannel(owner_bus, 'rep_h', true, clock, {
    message() {},
    frame(frame) {
      if (frame.stream !== stream) return;
      if (frame.kind === FRAME_KIND.end) whole = frame.offset === length;
      else if (frame.offset > length) holes++;
      else {
        const fresh = frame.payload.subarray(length - frame.offset);
        received.push(Buffer.from(fresh));
        length += fresh.byteLength;
        owner.send({ type: 'credit', stream, acked_offset: length });
      }
    },
    holds: () => [],
    synced(theirs) {
      sessions++;
      if (theirs.length === 0) return;
      stream = owner.newStream();
      owner.send({
        type: 'verdicts',
        verdicts: [{ ...OF, keep: true, stream, acked_offset: length, head_received: true }],
      });
    },
    broken: () => void (stream = 0),
  });
  const holder: Channel = openChannel(holder_bus, 'rep_o', false, clock, {
    message(message: PeerMessage) {
      if (message.type !== 'verdicts') return;
      const [verdict] = message.verdicts;
      holder.attach(verdict!.stream, out, verdict!);
    },
    frame() {},
    holds: () => [{ ...OF, started: true }],
    synced() {},
    broken() {},
  });
  owner_bus.listen({ ...NOTHING, sent: (_from, data) => owner.take(data) });
  holder_bus.listen({ ...NOTHING, sent: (_from, data) => holder.take(data) });

  holder.send({ type: 'claim', job: 'job_b', node: 'node_a', epoch: 1, backend: 'b', model: 'm' });
  for (let made = 0; made < BYTES; made += 4000) {
    const at = made;
    clock.after(at / 200, () => {
      out.push(Buffer.alloc(4000, at / 4000));
      if (at + 4000 === BYTES) out.end('complete');
    });
  }
  for (let passed_ms = 0; passed_ms < 60_000 && !whole; passed_ms += 50) clock.advance(50);
  expect(holes).toBe(0);
  owner.close();
  holder.close();
  return { bytes: Buffer.concat(received), whole, sessions };
}

const NOTHING: BusListener = { told() {}, sent() {}, connected() {}, disconnected() {} };

const EXPECTED = Buffer.concat(Array.from({ length: BYTES / 4000 }, (_, index) => Buffer.alloc(4000, index)));

describe('a channel between two replicas', () => {
  test('numbers streams for as long as it stands: each side its own, none of them 0', () => {
    const bus = lossyBus(new ManualClock(), { lost: [true], delay_ms: 0, outage: { at_ms: 0, for_ms: 0 } })(
      'a',
    );
    const nothing = { message() {}, frame() {}, holds: () => [], synced() {}, broken() {} };
    const [odd, even] = [true, false].map((owns_odd) => {
      const channel = openChannel(bus, 'b', owns_odd, new ManualClock(), nothing);
      return Array.from({ length: 100 }, () => channel.newStream());
    });
    const all = [...odd!, ...even!];
    expect(new Set(all).size).toBe(200);
    for (const stream of all) {
      expect(stream).toBeGreaterThan(0);
      expect(stream).toBeLessThan(2 ** 32);
    }
  });

  test('carries a stream whole, and in one session, where nothing is lost', () => {
    const { bytes, whole, sessions } = carry({ lost: [false], delay_ms: 5, outage: { at_ms: 0, for_ms: 0 } });
    expect([whole, bytes.equals(EXPECTED), sessions]).toEqual([true, true, 1]);
  });

  test('repeats no byte and misses none, whatever is lost on the way', () => {
    fc.assert(
      fc.property(weather, (conditions) => {
        const { bytes, whole } = carry(conditions);
        expect([whole, bytes.equals(EXPECTED)]).toEqual([true, true]);
      }),
      { numRuns: 150 },
    );
  });
});
