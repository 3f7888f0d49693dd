import type { Model } from '@flotilla/protocol';
import { describe, expect, test } from 'vitest';
import {
  healthOf,
  initialProbeState,
  nextTick,
  type ProbeEffect,
  type ProbeEvent,
  type ProbeState,
  stepProbe,
} from './probe-rules.ts';

const chat = (id: string, loaded?: boolean): Model => ({
  id,
  operations: ['chat', 'completions'],
  ...(loaded === undefined ? {} : { loaded }),
});

/** A backend under the rules alone: time is a number, effects are answered by the test. */
class Bench {
  now = 0;
  state: ProbeState;
  constructor(probe: 'generate' | 'list' = 'generate') {
    this.state = initialProbeState(probe, 0);
  }
  send(event: ProbeEvent): ProbeEffect[] {
    const { state, effects } = stepProbe(this.state, event, this.now);
    this.state = state;
    return effects;
  }
  /** Waits until the next effect is due, or `null` when none is within `most_ms`. */
  next(most_ms = 120_000): { after_ms: number; effects: ProbeEffect[] } | null {
    const began = this.now;
    for (let tries = 0; tries < 1000; tries++) {
      const at = nextTick(this.state);
      if (at - began > most_ms) return null;
      this.now = Math.max(this.now, at);
      const effects = this.send({ type: 'tick' });
      if (effects.length > 0) return { after_ms: this.now - began, effects };
    }
    throw new Error('The ticks never end.');
  }
  listed(models: Model[], loads_on_demand = false) {
    return this.send({ type: 'listed', models, loads_on_demand });
  }
  get health() {
    return healthOf(this.state);
  }
}

const list = { do: 'list' };
const generate = (model: string) => ({ do: 'generate', model, operations: ['chat', 'completions'] });
const refused: ProbeEvent = { type: 'list_failed', reason: 'refused', refused: true };
const broken: ProbeEvent = { type: 'list_failed', reason: 'status 500', refused: false };

/** Seen, and its one model proved. */
function proved(): Bench {
  const bench = new Bench();
  bench.send({ type: 'tick' });
  expect(bench.listed([chat('m')])).toEqual([generate('m')]);
  bench.send({ type: 'generated', model: 'm', operation: 'chat' });
  expect(bench.health).toEqual({ health: 'healthy', models: [] });
  return bench;
}

describe('the list', () => {
  test('is asked for at once, then every ten seconds while it is good', () => {
    const bench = new Bench('list');
    expect(bench.send({ type: 'tick' })).toEqual([list]);
    expect(bench.health.health).toBe('down');
    bench.listed([chat('m')]);
    expect(bench.health.health).toBe('healthy');
    expect(bench.next()).toEqual({ after_ms: 10_000, effects: [list] });
  });

  test('is never asked twice at once, however often it is wanted', () => {
    const bench = new Bench('list');
    bench.send({ type: 'tick' });
    expect(bench.send({ type: 'look' })).toEqual([]);
    expect(bench.send({ type: 'request_failed', model: 'm', reason: 'x' })).toEqual([]);
  });

  test('that is wanted while one is under way is asked for once more after it, a quarter of a second later', () => {
    const bench = proved();
    bench.next();
    bench.send({ type: 'request_failed', model: 'm', reason: 'refused' });
    bench.listed([chat('m')]); // answered, perhaps, before that request failed
    expect(bench.next()).toEqual({ after_ms: 250, effects: [list] });
    bench.listed([chat('m')]);
    expect(bench.next()?.after_ms).toBe(10_000);
  });

  test('after a failure is asked again after 0.25, 0.5, 1, 2, 5, 5 … seconds until it is good', () => {
    const bench = proved();
    bench.next();
    const waits: number[] = [];
    for (let failure = 0; failure < 7; failure++) {
      bench.send(broken);
      waits.push(bench.next()!.after_ms);
    }
    expect(waits).toEqual([250, 500, 1_000, 2_000, 5_000, 5_000, 5_000]);
    bench.listed([chat('m')]);
    bench.send({ type: 'generated', model: 'm', operation: 'chat' });
    expect(bench.next()?.after_ms).toBe(10_000);
  });

  test('a refused connection makes the backend down at once', () => {
    const bench = proved();
    bench.next();
    bench.send(refused);
    expect(bench.health).toEqual({ health: 'down', reason: 'refused', models: [] });
  });

  test('a bad answer degrades it, the third in a row takes it down', () => {
    const bench = proved();
    const healths: string[] = [];
    for (let failure = 0; failure < 3; failure++) {
      bench.next();
      bench.send(broken);
      healths.push(bench.health.health);
    }
    expect(healths).toEqual(['degraded', 'degraded', 'down']);
  });

  test('a server too busy to list its models but serving them is not down', () => {
    const bench = proved();
    for (let failure = 0; failure < 5; failure++) {
      bench.next();
      bench.send(broken);
      bench.send({ type: 'request_served', model: 'm' });
    }
    expect(bench.health.health).toBe('degraded');
  });

  test('what has never answered is down, with the reason', () => {
    const bench = new Bench();
    bench.send({ type: 'tick' });
    bench.send(broken);
    expect(bench.health).toEqual({ health: 'down', reason: 'status 500', models: [] });
  });
});

describe('the proof of a model', () => {
  test('is asked for at first sight, one model at a time', () => {
    const bench = new Bench();
    bench.send({ type: 'tick' });
    expect(bench.listed([chat('a'), chat('b')])).toEqual([generate('a')]);
    expect(bench.health).toEqual({
      health: 'healthy',
      models: [
        { id: 'a', health: 'degraded', reason: 'Its first probe is under way.' },
        { id: 'b', health: 'degraded', reason: 'Its first probe is under way.' },
      ],
    });
    expect(bench.send({ type: 'generated', model: 'a', operation: 'chat' })).toEqual([generate('b')]);
  });

  test('is asked for again after a minute without service, and put off by each served request', () => {
    const bench = proved();
    bench.now = 50_000;
    bench.send({ type: 'request_served', model: 'm' });
    const asked: [number, string][] = [];
    while (bench.now < 120_000) {
      const effect = bench.next()!.effects[0]!;
      asked.push([bench.now, effect.do]);
      if (effect.do === 'list') bench.listed([chat('m')]);
      else break;
    }
    expect(asked.at(-1)).toEqual([110_000, 'generate']);
  });

  test('is not asked of a backend that is at work', () => {
    const bench = proved();
    bench.send({ type: 'load', in_flight: 1 });
    for (let seconds = 0; seconds < 300; seconds += 10) {
      const due = bench.next()!;
      expect(due.effects).toEqual([list]);
      bench.listed([chat('m')]);
    }
  });

  test('is asked for, with the list, the moment a request failed', () => {
    const bench = proved();
    bench.now = 5_000;
    expect(bench.send({ type: 'request_failed', model: 'm', reason: 'status 500' })).toEqual([
      list,
      generate('m'),
    ]);
  });

  test('is asked for once a second at most, however many requests fail', () => {
    const bench = proved();
    bench.now = 5_000;
    bench.send({ type: 'request_failed', model: 'm', reason: 'x' });
    bench.listed([chat('m')]);
    bench.send({ type: 'generated', model: 'm', operation: 'chat' });
    let proofs = 0;
    for (let ms = 0; ms < 3_000; ms += 10) {
      bench.now += 10;
      for (const effect of bench.send({ type: 'request_failed', model: 'm', reason: 'x' })) {
        if (effect.do === 'list') bench.listed([chat('m')]);
        else {
          proofs += 1;
          bench.send({ type: 'generated', model: 'm', operation: 'chat' });
        }
      }
    }
    expect(proofs).toBe(3);
  });

  test('a model that fails it is down with the reason, and tried again until it is good', () => {
    const bench = new Bench();
    bench.send({ type: 'tick' });
    bench.listed([chat('a'), chat('b')]);
    bench.send({ type: 'generate_failed', model: 'a', reason: 'out of memory', refused: false, busy: false });
    bench.send({ type: 'generated', model: 'b', operation: 'chat' });
    expect(bench.health).toEqual({
      health: 'healthy',
      models: [{ id: 'a', health: 'down', reason: 'out of memory' }],
    });
    expect(bench.next()).toEqual({ after_ms: 250, effects: [generate('a')] });
    bench.send({ type: 'generated', model: 'a', operation: 'chat' });
    expect(bench.health).toEqual({ health: 'healthy', models: [] });
  });

  test('a backend none of whose models passes is down, although it lists them', () => {
    const bench = proved();
    bench.send({ type: 'request_failed', model: 'm', reason: 'x' });
    bench.now += 1_000;
    bench.listed([chat('m')]);
    bench.send({ type: 'tick' });
    bench.send({ type: 'generate_failed', model: 'm', reason: 'CUDA error', refused: false, busy: false });
    expect(bench.health).toEqual({ health: 'down', reason: 'CUDA error', models: [] });
  });

  test('a busy backend is degraded, not down', () => {
    const bench = proved();
    bench.send({ type: 'generate_failed', model: 'm', reason: 'status 429', refused: false, busy: true });
    expect(bench.health.models).toEqual([{ id: 'm', health: 'degraded', reason: 'status 429' }]);
  });

  test('a connection refused to a proof takes the backend down, and its return proves the models anew', () => {
    const bench = proved();
    expect(
      bench.send({ type: 'generate_failed', model: 'm', reason: 'refused', refused: true, busy: false }),
    ).toEqual([list]);
    expect(bench.health).toMatchObject({ health: 'down', reason: 'refused' });
    expect(bench.listed([chat('m')])).toEqual([generate('m')]);
  });

  test('an operation the model answers instead of chat is learned', () => {
    const bench = new Bench();
    bench.send({ type: 'tick' });
    bench.listed([chat('m')]);
    bench.send({ type: 'generated', model: 'm', operation: 'embeddings' });
    expect(bench.state.models.get('m')?.learned).toEqual(['embeddings']);
  });

  test('`list` as the wish of the owner means none, ever', () => {
    const bench = new Bench('list');
    bench.send({ type: 'tick' });
    expect(bench.listed([chat('m')])).toEqual([]);
    expect(bench.health).toEqual({ health: 'healthy', models: [] });
    expect(bench.send({ type: 'request_failed', model: 'm', reason: 'x' })).toEqual([list]);
  });
});

describe('a server that loads on demand', () => {
  function onDemand(...models: Model[]): Bench {
    const bench = new Bench();
    bench.send({ type: 'tick' });
    expect(bench.listed(models, true)).toEqual([]);
    return bench;
  }

  test('is asked for no proof unasked, neither of what is loaded nor of what is not: healthy by its list', () => {
    const bench = onDemand(chat('cold', false), chat('warm', true), chat('elsewhere'));
    expect(bench.health).toEqual({ health: 'healthy', models: [] });
    for (let times = 0; times < 12; times++) {
      expect(bench.next()?.effects).toEqual([list]);
      bench.listed([chat('cold', false), chat('warm', true), chat('elsewhere')], true);
    }
  });

  test('after a failed request proves the model if it is loaded, and never one that is not', () => {
    const bench = onDemand(chat('cold', false), chat('warm', true));
    bench.now = 5_000;
    expect(bench.send({ type: 'request_failed', model: 'warm', reason: 'x' })).toEqual([
      list,
      generate('warm'),
    ]);
    bench.send({ type: 'generated', model: 'warm', operation: 'chat' });
    bench.listed([chat('cold', false), chat('warm', true)], true);
    bench.now = 10_000;
    expect(bench.send({ type: 'request_failed', model: 'cold', reason: 'x' })).toEqual([list]);
  });

  test('a model that cannot be proved is kept back for 30 s after three failed requests in a row, then tried', () => {
    const bench = onDemand(chat('cold', false), chat('other', false));
    const fail = () => bench.send({ type: 'request_failed', model: 'cold', reason: 'cannot load' });
    fail();
    fail();
    bench.send({ type: 'request_served', model: 'cold' });
    fail();
    fail();
    bench.listed([chat('cold', false), chat('other', false)], true);
    expect(bench.health.models).toEqual([]);
    fail();
    expect(bench.health.models).toEqual([{ id: 'cold', health: 'degraded', reason: 'cannot load' }]);
    bench.now += 30_000;
    bench.send({ type: 'tick' });
    expect(bench.health.models).toEqual([]);
  });

  test('what a proof said of a loaded model is forgotten when it is unloaded', () => {
    const bench = onDemand(chat('warm', true), chat('other', true));
    bench.now = 5_000;
    bench.send({ type: 'request_failed', model: 'warm', reason: 'x' });
    bench.send({ type: 'generate_failed', model: 'warm', reason: 'broken', refused: false, busy: false });
    expect(bench.health.models).toMatchObject([{ id: 'warm', health: 'down' }]);
    bench.listed([chat('warm', false), chat('other', true)], true);
    expect(bench.health.models).toEqual([]);
  });
});

test('a model that is no longer listed is gone', () => {
  const bench = proved();
  bench.listed([chat('n')]);
  expect([...bench.state.models.keys()]).toEqual(['n']);
});
