import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type LivenessEvent,
  isStalled,
  newLiveness,
  nextLivenessDeadline,
  stepLiveness,
  timings,
} from './liveness.ts';

const heartbeats = fc.double({ min: 50, max: 120_000, noNaN: true });

describe('the liveness chain', () => {
  it('keeps its order for every heartbeat interval', () => {
    fc.assert(
      fc.property(heartbeats, (heartbeat_ms) => {
        const t = timings(heartbeat_ms);
        const chain = [
          t.heartbeat_ms + t.jitter_ms,
          t.socket_dead_ms,
          t.suspect_ms,
          t.fence_ms,
          t.lease_ttl_ms,
        ];
        for (let index = 1; index < chain.length; index++)
          expect(chain[index - 1]).toBeLessThan(chain[index]!);
      }),
    );
  });

  it('lets the node stop by its own clock before the control plane gives its work away', () => {
    fc.assert(
      fc.property(heartbeats, fc.double({ min: 0, max: 60_000, noNaN: true }), (heartbeat_ms, delay_ms) => {
        const t = timings(heartbeat_ms);
        const sent_ms = 1000;
        const received_ms = sent_ms + delay_ms;
        expect(sent_ms + t.fence_ms).toBeLessThan(received_ms + t.lease_ttl_ms);
      }),
    );
  });
});

describe('a node', () => {
  const t = timings(1000);
  const run = (events: [LivenessEvent, number][]) =>
    events.reduce((node, [event, at]) => stepLiveness(node, event, at, t), newLiveness('offline', ''));

  it('is online once it is registered and reconciled', () => {
    expect(run([[{ type: 'registered' }, 0]]).state).toBe('pending');
    expect(
      run([
        [{ type: 'registered' }, 0],
        [{ type: 'reconciled' }, 1],
      ]).state,
    ).toBe('online');
  });

  it('turns suspect when its socket closes and offline when its lease ends', () => {
    const closed = run([
      [{ type: 'registered' }, 0],
      [{ type: 'reconciled' }, 1],
      [{ type: 'closed', reason: 'reset' }, 500],
    ]);
    expect(closed).toMatchObject({ state: 'suspect', reason: 'reset' });
    expect(stepLiveness(closed, { type: 'tick' }, 2999, t).state).toBe('suspect');
    expect(stepLiveness(closed, { type: 'tick' }, 3000, t).state).toBe('offline');
  });

  it('turns suspect after two and a half silent beats and comes back with the next one', () => {
    const online = run([
      [{ type: 'registered' }, 0],
      [{ type: 'reconciled' }, 1],
    ]);
    const suspect = stepLiveness(online, { type: 'tick' }, 2500, t);
    expect(suspect.state).toBe('suspect');
    expect(stepLiveness(suspect, { type: 'beat', progress_seq: 1 }, 2600, t).state).toBe('online');
  });

  it('is never revived once revoked', () => {
    const revoked = run([
      [{ type: 'registered' }, 0],
      [{ type: 'revoked' }, 1],
    ]);
    expect(
      run([
        [{ type: 'registered' }, 0],
        [{ type: 'revoked' }, 1],
        [{ type: 'registered' }, 2],
      ]),
    ).toEqual(revoked);
  });

  it('is stalled when its beats go on but its main thread stands still', () => {
    const beating = run([
      [{ type: 'registered' }, 0],
      [{ type: 'reconciled' }, 0],
      [{ type: 'beat', progress_seq: 7 }, 1000],
      [{ type: 'beat', progress_seq: 7 }, 2000],
      [{ type: 'beat', progress_seq: 7 }, 3001],
    ]);
    expect(isStalled(beating, 3001, t)).toBe(true);
    expect(isStalled(stepLiveness(beating, { type: 'beat', progress_seq: 8 }, 3100, t), 3100, t)).toBe(false);
  });

  it('never goes offline while beats come within the lease, whatever else happens', () => {
    const event = fc.constantFrom<LivenessEvent>(
      { type: 'tick' },
      { type: 'beat', progress_seq: 1 },
      { type: 'reconciled' },
    );
    fc.assert(
      fc.property(
        fc.array(fc.tuple(event, fc.integer({ min: 0, max: 2000 })), { maxLength: 60 }),
        (steps) => {
          let node = run([
            [{ type: 'registered' }, 0],
            [{ type: 'reconciled' }, 0],
          ]);
          let now = 0;
          for (const [event, wait] of steps) {
            now += wait;
            const last = node.last_beat_ms!;
            node = stepLiveness(node, event, now, t);
            if (now - last < t.lease_ttl_ms) expect(node.state).not.toBe('offline');
            const deadline = nextLivenessDeadline(node, t);
            if (deadline !== null) expect(stepLiveness(node, { type: 'tick' }, deadline, t)).not.toBe(node);
          }
        },
      ),
    );
  });
});
