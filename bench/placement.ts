import {
  type Ledger,
  type ModelSpots,
  newLedger,
  newModelSpots,
  place,
  promise,
  resizePools,
  type Spot,
  withdrawPromise,
} from '@flotilla/core';
import { Samples, type Spread, spreadOf } from './histogram.ts';

/** One decision of the scheduler, in this process: the rule itself, which costs a request its share of the event loop. */
export interface Decided {
  what: string;
  /** In µs. */
  took: Spread;
}

const NODES = 10_000;
const MODELS = 1000;
/** So that each model is on a hundred nodes. */
const MODELS_A_NODE = 10;
const SLOTS = 4;
const POOL = 'pool';
const NOBODY: ReadonlySet<string> = new Set();

/** @param decisions of each kind; as many go before, unmeasured: until then V8 still compiles what the first do */
export function decide(decisions: number): Decided[] {
  const each = fleet(MODELS, MODELS_A_NODE);
  const popular = fleet(1, 1);
  const zones = { zone: 'zone-3' };
  return [
    {
      what: `each of ${MODELS} models on ${(NODES * MODELS_A_NODE) / MODELS} nodes`,
      took: time(each, decisions),
    },
    { what: `one model on all ${NODES} nodes`, took: time(popular, decisions) },
    { what: 'the same, only nodes with a label that a tenth has', took: time(popular, decisions, zones) },
    { what: 'each model, most slots taken', took: time(each, decisions, {}, 0.9) },
  ];
}

interface Fleet {
  spots: ModelSpots[];
  ledgers: Map<Spot['slots'], Ledger>;
}

/** With the pools that a roster has: what they cost to look at is a part of the decision. */
function fleet(models: number, models_a_node: number): Fleet {
  const spots = Array.from({ length: models }, () => newModelSpots());
  const ledgers = new Map<Spot['slots'], Ledger>();
  for (let n = 0; n < NODES; n++) {
    const own: { spot: Spot; spots: ModelSpots }[] = [];
    const ledger = newLedger(() => {
      for (const { spot, spots: all } of own) all.moved(spot);
    });
    resizePools(ledger, [{ id: POOL, capacity: SLOTS, capacity_from: 'config' }]);
    const slots = ledger.pools.get(POOL)!;
    ledgers.set(slots, ledger);
    const node: Spot['node'] = {
      id: `node-${n}`,
      state: 'online',
      stalled: false,
      cordoned: false,
      draining: false,
      labels: { zone: `zone-${n % 10}` },
      allowed_models: null,
      failures: 0,
      unfenced: false,
    };
    for (let at = 0; at < models_a_node; at++) {
      const spot: Spot = {
        node,
        backend: 'backend',
        operations: ['chat'],
        loaded: at === 0,
        backend_health: 'healthy',
        model_health: 'healthy',
        slots,
      };
      const all = spots[(n * models_a_node + at) % models]!;
      all.add(spot);
      own.push({ spot, spots: all });
    }
  }
  return { spots, ledgers };
}

/** What is placed takes its slot, and the oldest gives one back, so that the fleet stays as full as it is to be. */
function time(
  { spots, ledgers }: Fleet,
  decisions: number,
  labels: Record<string, string> = {},
  full = 0.5,
): Spread {
  const took = new Samples();
  const taken = new Set<{ spot: Spot }>();
  const most = NODES * SLOTS * full * (Object.keys(labels).length === 0 ? 1 : 0.1);
  const skipped = most + decisions;
  const random = Math.random;
  for (let n = 0; n < skipped + decisions; n++) {
    const own = spots[Math.floor(random() * spots.length)]!;
    const request = {
      model: 'model',
      operation: 'chat',
      labels,
      pin: null,
      avoid: NOBODY,
      refused_by: NOBODY,
      affinity: null,
    } as const;
    const began = process.hrtime.bigint();
    const placement = place(request, own, random);
    const took_us = Number(process.hrtime.bigint() - began) / 1000;
    if (n >= skipped) took.add(took_us);
    if (placement.kind === 'placed') {
      taken.add({ spot: placement.spot });
      change(placement.spot, promise);
    }
    if (taken.size > most) giveOldest();
  }
  while (taken.size > 0) giveOldest();
  return spreadOf(took.values());

  function giveOldest(): void {
    const [oldest] = taken;
    taken.delete(oldest!);
    change(oldest!.spot, withdrawPromise);
  }

  function change({ slots }: Spot, how: typeof promise): void {
    const ledger = ledgers.get(slots)!;
    how(ledger, ledger.pools.get(POOL)!);
  }
}
