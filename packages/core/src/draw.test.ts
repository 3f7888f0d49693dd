import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { countFrom, drawShare, leaveShare, newAllowance } from './draw.ts';
import {
  askDraw,
  deniedFor,
  endShare,
  type HeldShare,
  isAtRest,
  newHeldShare,
  runsLow,
  takeDrawn,
  takeShare,
  tickShare,
  undrawn,
} from './held-share.ts';
import type { Allowance, AllowanceKind, Draw, KeyLimits } from './ports/shared-limits.ts';

const NONE: KeyLimits = {
  requests_per_minute: null,
  tokens_per_minute: null,
  concurrency: null,
  token_budget: null,
};
const DRAW: Draw = {
  key: 'key',
  kind: 'requests',
  held: 0,
  busy: 0,
  spent: 0,
  size: null,
  start: 0,
  first: 0,
  need: 0,
  ahead: 0,
  recalled: 0,
  answers: 0,
  doubt: false,
};
const REPLICAS = ['a', 'b', 'c'];
const T0 = 1_772_360_430_000; // 2026-03-01T10:20:30Z

function keyOf(kind: AllowanceKind, size: number): KeyLimits {
  switch (kind) {
    case 'requests':
      return { ...NONE, requests_per_minute: size };
    case 'tokens':
      return { ...NONE, tokens_per_minute: size };
    case 'concurrency':
      return { ...NONE, concurrency: size };
    case 'budget':
      return { ...NONE, token_budget: { tokens: size, period: 'day' } };
  }
}

/** Replicas that share one limit, without a bus: each finds out at its draws. */
class Fleet {
  now = T0;
  allowance: Allowance;
  shares = new Map<string, HeldShare>();
  /** What usage rows say. */
  rows = 0;
  readonly kind: AllowanceKind;
  readonly key: KeyLimits;
  readonly size: number;

  constructor(kind: AllowanceKind, size: number) {
    this.kind = kind;
    this.size = size;
    this.key = keyOf(kind, size);
    this.allowance = newAllowance('key', kind);
    for (const replica of REPLICAS) this.start(replica);
  }

  start(replica: string): void {
    this.shares.set(replica, newHeldShare('key', this.kind, this.size));
  }

  /** @param amount what a request that waits there is to have; 0: none waits */
  draw(replica: string, amount = 0, answer: 'heard' | 'lost' | 'refused' = 'heard'): void {
    const share = this.shares.get(replica)!;
    const draw = askDraw(share, (free) => {
      const lack = Math.max(0, amount - free);
      return { first: lack, need: lack };
    });
    if (answer === 'refused') return undrawn(share, draw);
    const start = countFrom(this.allowance, draw, this.key, this.now);
    const count = start === null ? null : { start, spent: this.rows, pledged: 0 };
    const { allowance, drawn } = drawShare(this.allowance, replica, draw, this.key, this.now, count);
    this.allowance = allowance;
    if (answer === 'lost') return undrawn(share, draw);
    takeDrawn(share, draw, drawn, this.now);
  }

  /** @returns whether it was admitted */
  ask(replica: string, amount: number): boolean {
    if (this.take(replica, amount)) return true;
    this.draw(replica, amount);
    return this.take(replica, amount);
  }

  /** Of what is at hand. */
  take(replica: string, amount: number): boolean {
    const share = this.shares.get(replica)!;
    if (share.free < amount) return false;
    takeShare(share, amount);
    return true;
  }

  tick(replica: string): void {
    const share = this.shares.get(replica)!;
    if (tickShare(share)) this.draw(replica);
  }

  die(replica: string): void {
    this.allowance = leaveShare(this.allowance, replica, this.now);
    this.start(replica);
  }

  busy(): number {
    return REPLICAS.reduce((sum, replica) => sum + this.shares.get(replica)!.busy, 0);
  }

  /** As with hints, or after a few looks: who lacks asks, who has gives, who lacks gets. */
  takeAfterRecall(replica: string, amount: number): boolean {
    for (let round = 0; round < 4; round++) {
      if (this.take(replica, amount)) return true;
      this.draw(replica, amount);
      for (const other of REPLICAS) {
        if (other !== replica) this.draw(other);
        if (other !== replica) this.draw(other);
      }
    }
    return this.take(replica, amount);
  }
}

const replica = fc.constantFrom(...REPLICAS);
const answer = fc.constantFrom('heard' as const, 'heard' as const, 'lost' as const, 'refused' as const);
const step = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      type: fc.constant('take' as const),
      replica,
      amount: fc.integer({ min: 1, max: 30 }),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      type: fc.constant('draw' as const),
      replica,
      amount: fc.integer({ min: 0, max: 30 }),
      answer,
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      type: fc.constant('end' as const),
      replica,
      nth: fc.nat(),
      part: fc.double({ min: 0, max: 1, noNaN: true }),
    }),
  },
  { weight: 2, arbitrary: fc.record({ type: fc.constant('tick' as const), replica }) },
  {
    weight: 1,
    arbitrary: fc.record({ type: fc.constant('pass' as const), ms: fc.integer({ min: 1, max: 2000 }) }),
  },
  { weight: 1, arbitrary: fc.record({ type: fc.constant('die' as const), replica }) },
);
const steps = fc.array(step, { maxLength: 150 });
const size = fc.integer({ min: 1, max: 100 });

describe('a limit that replicas share', () => {
  it('of a rate: no more is admitted than by one bucket, whoever draws, dies or does not hear the answer', () => {
    fc.assert(
      fc.property(
        fc.constantFrom('requests' as const, 'tokens' as const),
        size,
        steps,
        (kind, per_minute, all) => {
          const fleet = new Fleet(kind, per_minute);
          let bucket = per_minute;
          for (const at of all) {
            if (at.type === 'take' && fleet.ask(at.replica, at.amount)) bucket -= at.amount;
            if (at.type === 'draw') fleet.draw(at.replica, at.amount, at.answer);
            if (at.type === 'tick') fleet.tick(at.replica);
            if (at.type === 'die') fleet.die(at.replica);
            if (at.type === 'pass') {
              fleet.now += at.ms;
              bucket = Math.min(per_minute, bucket + (at.ms * per_minute) / 60_000);
            }
            expect(bucket).toBeGreaterThanOrEqual(-0.001);
          }
        },
      ),
    );
  });

  it('of concurrency: no more are under way on all replicas together, and those of a dead one are free again', () => {
    fc.assert(
      fc.property(size, steps, (concurrency, all) => {
        const fleet = new Fleet('concurrency', concurrency);
        for (const at of all) {
          const share = 'replica' in at ? fleet.shares.get(at.replica)! : null;
          if (at.type === 'take') fleet.ask(at.replica, 1);
          if (at.type === 'draw') fleet.draw(at.replica, Math.min(1, at.amount), at.answer);
          if (at.type === 'end' && share!.busy > 0) endShare(share!, 1, 0);
          if (at.type === 'tick') fleet.tick(at.replica);
          if (at.type === 'die') fleet.die(at.replica);
          expect(fleet.busy()).toBeLessThanOrEqual(concurrency);
        }
        for (const one of REPLICAS.slice(1)) fleet.die(one);
        const left = concurrency - fleet.busy();
        for (let n = 0; n < left; n++) expect(fleet.takeAfterRecall('a', 1)).toBe(true);
        expect(fleet.takeAfterRecall('a', 1)).toBe(false);
      }),
    );
  });

  it('of a budget: it is overrun by one request at most, whoever dies with what was never told', () => {
    fc.assert(
      fc.property(size, steps, (tokens, all) => {
        const fleet = new Fleet('budget', tokens);
        const open = new Map<string, number[]>(REPLICAS.map((one) => [one, []]));
        let largest = 0;
        let costliest = 0;
        for (const at of all) {
          if (at.type === 'take' && fleet.ask(at.replica, at.amount)) {
            open.get(at.replica)!.push(at.amount);
          }
          if ('amount' in at) largest = Math.max(largest, at.amount);
          if (at.type === 'draw') fleet.draw(at.replica, at.amount, at.answer);
          if (at.type === 'tick') fleet.tick(at.replica);
          if (at.type === 'end' && open.get(at.replica)!.length > 0) {
            const list = open.get(at.replica)!;
            const [reserved] = list.splice(at.nth % list.length, 1);
            const cost = Math.floor(reserved! * at.part);
            fleet.rows += cost;
            costliest = Math.max(costliest, cost);
            endShare(fleet.shares.get(at.replica)!, reserved!, cost);
          }
          if (at.type === 'die') {
            open.set(at.replica, []);
            fleet.die(at.replica);
          }
          const under_way = [...open.values()].flat().reduce((sum, reserved) => sum + reserved, 0);
          // Who begins when something is left may cost more than that.
          if (fleet.rows > tokens) expect(fleet.rows).toBeLessThanOrEqual(tokens - 1 + costliest);
          expect(fleet.rows + under_way).toBeLessThanOrEqual(tokens + largest);
        }
      }),
    );
  });

  it('is wholly there for one replica, whatever the others had of it before', () => {
    fc.assert(
      fc.property(
        fc.constantFrom<AllowanceKind>('requests', 'tokens', 'concurrency'),
        size,
        steps,
        (kind, limit, all) => {
          const fleet = new Fleet(kind, limit);
          for (const at of all) {
            if (at.type === 'take') fleet.ask(at.replica, at.amount);
            if (at.type === 'draw') fleet.draw(at.replica, at.amount, at.answer);
            if (at.type === 'tick') fleet.tick(at.replica);
          }
          for (const share of fleet.shares.values())
            if (kind === 'concurrency') endShare(share, share.busy, 0);
          for (const one of REPLICAS) fleet.draw(one);
          // Each answer that was lost may have counted all tokens once more.
          const lost = all.filter((at) => at.type === 'draw' && at.answer === 'lost').length;
          fleet.now += kind === 'tokens' ? (lost + 1) * 60_000 : 60_000;
          expect(fleet.takeAfterRecall('b', limit)).toBe(true);
        },
      ),
    );
  });

  it('of a rate: what a dead replica held counts as used, and comes back with time', () => {
    const fleet = new Fleet('requests', 60);
    fleet.draw('a', 60);
    fleet.die('a');
    expect(fleet.ask('b', 1)).toBe(false);
    fleet.now += 60_000;
    expect(fleet.ask('b', 60)).toBe(true);
  });

  it('is told again of what a store that did not answer may not have heard', () => {
    const fleet = new Fleet('requests', 10);
    expect(fleet.ask('a', 8)).toBe(true);
    fleet.draw('a', 0, 'refused');
    fleet.draw('a');
    expect(fleet.ask('b', 3)).toBe(false);
    const budget = new Fleet('budget', 10);
    expect(budget.ask('a', 8)).toBe(true);
    endShare(budget.shares.get('a')!, 8, 8);
    budget.draw('a', 0, 'refused');
    budget.draw('a');
    expect(budget.allowance).toMatchObject({ used: 8, doubt: true });
  });

  it('of a rate: is not given back twice where the answer was lost, and what comes later is', () => {
    const fleet = new Fleet('tokens', 100);
    for (const one of ['a', 'b']) expect(fleet.ask(one, 40)).toBe(true);
    for (const one of ['a', 'b']) fleet.draw(one);
    endShare(fleet.shares.get('a')!, 40, 10);
    fleet.draw('a', 0, 'lost');
    expect(fleet.allowance.used).toBe(50);
    endShare(fleet.shares.get('a')!, 10, 5);
    fleet.draw('a', 0, 'refused');
    for (let n = 0; n < 2; n++) fleet.draw('a');
    expect(fleet.allowance.used).toBe(45);
  });

  it('has what cost more than was reserved taken from what is there', () => {
    const fleet = new Fleet('tokens', 100);
    expect(fleet.ask('a', 10)).toBe(true);
    endShare(fleet.shares.get('a')!, 10, 95);
    fleet.draw('a');
    expect(fleet.allowance.used).toBe(95);
    expect(fleet.takeAfterRecall('b', 6)).toBe(false);
    const budget = new Fleet('budget', 100);
    expect(budget.ask('a', 10)).toBe(true);
    endShare(budget.shares.get('a')!, 10, 95);
    budget.draw('a');
    expect(budget.takeAfterRecall('a', 5)).toBe(true);
    expect(budget.allowance.shares['a']?.held).toBe(5);
  });

  it('of a rate: comes back with time, and not faster', () => {
    const fleet = new Fleet('requests', 60);
    expect(fleet.takeAfterRecall('a', 60)).toBe(true);
    fleet.draw('a');
    for (let n = 0; n < 30; n++) {
      fleet.now += 1000;
      expect(fleet.takeAfterRecall(REPLICAS[n % 3]!, 1)).toBe(true);
      expect(fleet.takeAfterRecall(REPLICAS[n % 3]!, 1)).toBe(false);
    }
  });

  it('goes to one of two requests that each lack what the other’s replica holds', () => {
    const fleet = new Fleet('budget', 10);
    for (const one of ['a', 'b']) {
      expect(fleet.ask(one, 4)).toBe(true);
      endShare(fleet.shares.get(one)!, 4, 0);
    }
    const served = () => ['a', 'b'].some((one) => fleet.shares.get(one)!.free >= 8);
    for (let round = 0; round < 3 && !served(); round++) for (const one of ['a', 'b']) fleet.draw(one, 8);
    expect(served()).toBe(true);
  });

  it('is wholly there for traffic at all of them', () => {
    const fleet = new Fleet('requests', 100);
    let admitted = 0;
    for (let n = 0; n < 300; n++) if (fleet.takeAfterRecall(REPLICAS[n % 3]!, 1)) admitted++;
    expect(admitted).toBe(100);
  });

  it('is given back by a replica that does not want it any more, within three ticks', () => {
    for (const kind of ['requests', 'tokens', 'concurrency', 'budget'] as const) {
      const fleet = new Fleet(kind, 1000);
      for (let n = 0; n < 20; n++) {
        expect(fleet.takeAfterRecall('a', 5)).toBe(true);
        if (kind === 'budget' || kind === 'concurrency') endShare(fleet.shares.get('a')!, 5, 0);
      }
      for (let n = 0; n < 3; n++) fleet.tick('a');
      expect(isAtRest(fleet.shares.get('a')!)).toBe(true);
      expect(fleet.allowance.shares).toEqual({});
    }
  });

  it('is drawn ahead of need: a steady stream of requests finds it at hand after the first', () => {
    const fleet = new Fleet('requests', 10_000);
    let waited = 0;
    for (let n = 0; n < 2000; n++) {
      if (!fleet.take('a', 1)) {
        waited++;
        expect(fleet.takeAfterRecall('a', 1)).toBe(true);
      }
      if (runsLow(fleet.shares.get('a')!)) fleet.draw('a');
      if (n % 50 === 0) fleet.tick('a');
    }
    expect(waited).toBe(1);
  });

  it('says when a rate will have it, and is not asked again before', () => {
    const fleet = new Fleet('requests', 60);
    for (let n = 0; n < 60; n++) expect(fleet.takeAfterRecall('a', 1)).toBe(true);
    fleet.draw('a', 1);
    const share = fleet.shares.get('a')!;
    expect(deniedFor(share, 1, fleet.now)).toMatchObject({ verdict: 'short', there_ms: fleet.now + 1000 });
    expect(deniedFor(share, 1, fleet.now + 1000)).toBeNull();
    fleet.now += 1000;
    fleet.draw('a', 1);
    expect(fleet.take('a', 1)).toBe(true);
    const owing = new Fleet('tokens', 60);
    expect(owing.ask('a', 10)).toBe(true);
    endShare(owing.shares.get('a')!, 10, 600);
    owing.draw('a');
    owing.draw('a', 1);
    expect(owing.shares.get('a')!.denied?.there_ms).toBe(owing.now + 541_000);
  });

  it('of concurrency: a refusal is final only after all that hold some have answered', () => {
    const fleet = new Fleet('concurrency', 1);
    expect(fleet.takeAfterRecall('a', 1)).toBe(true);
    fleet.draw('b', 1);
    expect(deniedFor(fleet.shares.get('b')!, 1, fleet.now)).toBeNull();
    // It hears of the recall at its own look, and answers with the next.
    fleet.draw('a');
    fleet.draw('b', 1);
    expect(deniedFor(fleet.shares.get('b')!, 1, fleet.now)).toBeNull();
    fleet.draw('a');
    fleet.draw('b', 1);
    expect(deniedFor(fleet.shares.get('b')!, 1, fleet.now)?.verdict).toBe('short');
  });

  it('of a rate: that was changed begins whole, whoever tells late what was used before', () => {
    const draw: Draw = { ...DRAW, size: 1000, spent: 900 };
    const old = { ...newAllowance('key', 'requests'), size: 1000, used: 50, at: T0 };
    expect(drawShare(old, 'a', draw, keyOf('requests', 1000), T0).allowance.used).toBe(950);
    const key = keyOf('requests', 10);
    const changed = drawShare(old, 'b', DRAW, key, T0).allowance;
    const late = drawShare(changed, 'a', { ...draw, first: 10, need: 10 }, key, T0);
    expect(late.drawn.granted).toBe(10);
    expect(drawShare(changed, 'a', { ...draw, size: 10, spent: 4 }, key, T0).allowance.used).toBe(4);
  });

  it('that was lowered gives nothing more until what is held has come down, and raised it counts at once', () => {
    const key = keyOf('concurrency', 4);
    const draw: Draw = { ...DRAW, kind: 'concurrency', first: 4, need: 4 };
    const before = drawShare(newAllowance('key', 'concurrency'), 'a', draw, key, T0).allowance;
    const lowered = drawShare(before, 'b', { ...draw, first: 1, need: 1 }, keyOf('concurrency', 2), T0);
    expect(lowered.drawn.granted).toBe(0);
    const raised = drawShare(before, 'b', { ...draw, first: 2, need: 2 }, keyOf('concurrency', 6), T0);
    expect(raised.drawn.granted).toBe(2);
    const lifted = drawShare(before, 'b', { ...draw, first: 1, need: 1 }, NONE, T0);
    expect(lifted.drawn).toMatchObject({ granted: 0, size: null, verdict: 'granted' });
  });
});

describe('the rows of a budget', () => {
  const key = keyOf('budget', 100);
  const counted: Allowance = {
    ...newAllowance('key', 'budget'),
    stale: false,
    counted_at: T0,
    start: dayOf(T0),
  };
  const draw: Draw = { ...DRAW, kind: 'budget', start: dayOf(T0) };

  it('are counted in a new period, after a death, and before somebody hears that it is spent; else never', () => {
    expect(countFrom(counted, draw, key, T0)).toBeNull();
    expect(countFrom(newAllowance('key', 'budget'), draw, key, T0)).toBe(dayOf(T0));
    expect(countFrom(counted, draw, key, T0 + 86_400_000)).toBe(dayOf(T0) + 86_400_000);
    const held = { ...counted, shares: { b: { held: 5, busy: 0, answered: 0 } } };
    expect(countFrom(leaveShare(held, 'b', T0), draw, key, T0)).toBe(dayOf(T0));
    const spent = { ...counted, used: 100 };
    const asking = { ...draw, first: 1, need: 1 };
    expect(countFrom(spent, asking, key, T0 + 29_000)).toBeNull();
    expect(countFrom(spent, asking, key, T0 + 30_000)).toBe(dayOf(T0));
    expect(countFrom(counted, { ...draw, doubt: true }, key, T0 + 299_000)).toBeNull();
    expect(countFrom({ ...counted, doubt: true }, draw, key, T0 + 300_000)).toBe(dayOf(T0));
  });

  it('are counted before somebody is refused for jobs of the dead, which may have ended', () => {
    const pledged = { ...counted, used: 10, pledged: 80, shares: { b: { held: 5, busy: 5, answered: 0 } } };
    const asking = { ...draw, first: 6, need: 6 };
    expect(countFrom(pledged, asking, key, T0 + 29_000)).toBeNull();
    expect(countFrom(pledged, asking, key, T0 + 30_000)).toBe(dayOf(T0));
    expect(countFrom(pledged, { ...asking, first: 5 }, key, T0 + 30_000)).toBeNull();
    expect(countFrom({ ...pledged, pledged: 0 }, { ...asking, first: 95 }, key, T0 + 30_000)).toBeNull();
  });

  it('hold what is told with the draw that has them counted', () => {
    const told = { ...draw, spent: 40 };
    const count = { start: dayOf(T0), spent: 40, pledged: 10 };
    const { allowance } = drawShare({ ...counted, stale: true }, 'a', told, key, T0, count);
    expect(allowance).toMatchObject({ used: 40, pledged: 10, stale: false });
    expect(drawShare(allowance, 'a', told, key, T0).allowance.used).toBe(80);
  });

  it('of a new period know nothing of what was drawn in the old one', () => {
    const held = { ...counted, used: 90, shares: { b: { held: 10, busy: 10, answered: 0 } } };
    const start = dayOf(T0) + 86_400_000;
    const late = { ...draw, held: 7, busy: 7, spent: 3, first: 100, need: 100 };
    const { drawn } = drawShare(held, 'a', late, key, T0 + 86_400_000, { start, spent: 0, pledged: 0 });
    expect(drawn).toMatchObject({ granted: 100, start, used: 0 });
  });
});

function dayOf(at: number): number {
  return Math.floor(at / 86_400_000) * 86_400_000;
}
