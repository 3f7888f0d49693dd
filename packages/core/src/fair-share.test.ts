import { describe, expect, it } from 'vitest';
import { PRIORITY_STEP_MS, heldSlot, newFairShare, orderKey, refund } from './fair-share.ts';
import { newLanes } from './lanes.ts';

describe('fair share', () => {
  it("puts another key's job in front of most of a burst", () => {
    const share = newFairShare();
    const burst = Array.from({ length: 100 }, () => orderKey(share, 'busy', 0, 1000));
    const other = orderKey(share, 'quiet', 0, 1500);
    expect(burst.filter((key) => key < other)).toHaveLength(1);
  });

  it('makes a job that waits older than everything that comes a minute of priority later', () => {
    const share = newFairShare();
    const waiting = orderKey(share, 'a', 0, 0);
    expect(orderKey(share, 'b', 1, 30_000)).toBeLessThan(waiting);
    expect(orderKey(share, 'c', 1, PRIORITY_STEP_MS + 1)).toBeGreaterThan(waiting);
  });

  it('costs nothing where nobody had to wait', () => {
    const share = newFairShare();
    for (let index = 0; index < 50; index++) {
      orderKey(share, 'a', 0, 0);
      refund(share, 'a');
    }
    expect(orderKey(share, 'a', 0, 0)).toBe(0);
  });

  it('forgets keys that have no debt', () => {
    const share = newFairShare();
    for (let index = 0; index < 25_000; index++) orderKey(share, `key ${index}`, 0, index * 2000);
    expect(share.keys.size).toBeLessThan(10_001);
  });

  it('gives idle keys a place at the head of a line that lags behind the time', () => {
    const share = newFairShare();
    const burst = Array.from({ length: 100 }, () => orderKey(share, 'busy', 0, 0));
    // A hundred seconds later ten have been served.
    const other = orderKey(share, 'quiet', 0, 100_000, burst[10]);
    expect(burst.filter((key) => key < other)).toHaveLength(10);
  });
});

interface Turn {
  id: string;
  capability: string;
  lane: string;
  order_key: number;
  sender: Sender;
  sent_ms: number;
}

interface Sender {
  key: string;
  slot_ms: number;
  /** How many it sends, and when. */
  burst: number;
  from_ms: number;
  /** It sends another one for each that has ended. */
  goes_on: boolean;
}

/** One slot, its line, and what each key had to wait and got of the slot. */
function simulate(senders: Sender[], end_ms: number) {
  const share = newFairShare();
  const lanes = newLanes<Turn>(10_000);
  const waits: Record<string, number[]> = {};
  const slot_time: Record<string, number> = {};
  let serial = 0;
  const head = () => {
    const lane = lanes.byCapability.get('m')?.lanes.get('chat');
    return lane && lanes.head(lane);
  };
  const send = (sender: Sender, sent_ms: number) => {
    const order_key = orderKey(share, sender.key, 0, sent_ms, head()?.order_key);
    const id = String(serial++).padStart(8, '0');
    lanes.push({ id, capability: 'm', lane: 'chat', order_key, sender, sent_ms });
  };
  const to_come = new Set(senders);
  for (let now = 0; now < end_ms; ) {
    for (const sender of to_come) {
      if (sender.from_ms > now) continue;
      to_come.delete(sender);
      for (let sent = 0; sent < sender.burst; sent++) send(sender, now);
    }
    const turn = head();
    if (turn === undefined) break;
    lanes.remove(turn);
    const { key, slot_ms, goes_on } = turn.sender;
    (waits[key] ??= []).push(now - turn.sent_ms);
    slot_time[key] = (slot_time[key] ?? 0) + slot_ms;
    now += slot_ms;
    heldSlot(share, key, slot_ms);
    if (goes_on) send(turn.sender, now);
  }
  return { waits, slot_time };
}

describe('one slot under load', () => {
  it('who asks one at a time waits for a job or two, however far behind the flood of another key is', () => {
    const flood = { key: 'flood', slot_ms: 10_000, burst: 500, from_ms: 0, goes_on: false };
    const quiet = { key: 'quiet', slot_ms: 10_000, burst: 1, from_ms: 1_000_000, goes_on: true };
    const { waits } = simulate([flood, quiet], 2_000_000);
    expect(waits['quiet']!.length).toBeGreaterThan(20);
    expect(Math.max(...waits['quiet']!)).toBeLessThanOrEqual(3 * flood.slot_ms);
  });

  it('is shared by time, not by turns: long jobs get no more of it than short ones', () => {
    const long = { key: 'long', slot_ms: 8000, burst: 20, from_ms: 0, goes_on: true };
    const short = { key: 'short', slot_ms: 400, burst: 20, from_ms: 0, goes_on: true };
    const { slot_time } = simulate([long, short], 3_000_000);
    const ratio = slot_time['long']! / slot_time['short']!;
    expect(ratio).toBeGreaterThan(0.6);
    expect(ratio).toBeLessThan(1.7);
  });
});
