import type { Way } from '../support/proxy.ts';
import type { Fleet } from './fleet.ts';

/**
 * What is broken, at random and in the open: which fault follows after how long, whom it meets and when it heals is
 * decided by the seed before anything begins (`planFaults`), so a run can be repeated. When it falls is the machine's.
 */
interface Fault {
  name: string;
  /** What it meets: one of the fleet's by its place, or the one there is. */
  target: 'replica' | 'node' | 'link' | 'bus' | 'store' | 'postgres' | 'nats';
  /** How often, compared with the others. */
  weight: number;
  /** Shortest and longest; most are nearer to the shortest. */
  for_ms: readonly [least: number, most: number];
  begin(fleet: Fleet, place: number): void | Promise<void>;
  heal(fleet: Fleet, place: number): void | Promise<void>;
}

const link = (name: string, weight: number, most_ms: number, ways: 'both' | Way | 'cut'): Fault => ({
  name,
  target: 'link',
  weight,
  for_ms: [300, most_ms],
  begin(fleet, place) {
    for (const way of fleet.nodes[place]!.links)
      if (ways === 'cut') way.cut();
      else way.blackhole(ways);
  },
  heal(fleet, place) {
    for (const way of fleet.nodes[place]!.links) way.restore();
  },
});

/** From one replica to what all of them share. */
const path = (name: string, target: 'bus' | 'store', weight: number, most_ms: number): Fault => ({
  name,
  target,
  weight,
  for_ms: [500, most_ms],
  begin: (fleet, place) => fleet.replicas[place]![target].blackhole(),
  heal: (fleet, place) => fleet.replicas[place]![target].restore(),
});

const service = (
  name: string,
  target: 'postgres' | 'nats',
  weight: number,
  how: 'kill' | 'stop' | 'freeze',
): Fault => ({
  name,
  target,
  weight,
  for_ms: [300, 10_000],
  begin: (fleet) => fleet[target][how](),
  heal: (fleet) => fleet[target][how === 'freeze' ? 'thaw' : 'start'](),
});

const killed = (name: string, target: 'replica' | 'node', weight: number, most_ms: number): Fault => ({
  name,
  target,
  weight,
  for_ms: [100, most_ms],
  begin: (fleet, place) => processOf(fleet, target, place).kill(),
  heal: (fleet, place) => processOf(fleet, target, place).release(),
});

/** Longer than 4 H at times: the others have buried it, and it has to end by itself. */
const frozen = (name: string, target: 'replica' | 'node', weight: number, most_ms: number): Fault => ({
  name,
  target,
  weight,
  for_ms: [1000, most_ms],
  begin: (fleet, place) => processOf(fleet, target, place).freeze(),
  heal: (fleet, place) => processOf(fleet, target, place).thaw(),
});

const FAULTS: readonly Fault[] = [
  killed('kill -9 of a replica', 'replica', 6, 5000),
  frozen('SIGSTOP of a replica', 'replica', 3, 15_000),
  {
    ...killed('restart of a replica', 'replica', 2, 2000),
    begin: (fleet, place) => fleet.replicas[place]!.process.stop(),
  },
  killed('kill -9 of a node', 'node', 6, 12_000),
  frozen('SIGSTOP of a node', 'node', 3, 13_000),
  link('link of a node blackholed', 4, 18_000, 'both'),
  link('link of a node half open, from it', 2, 10_000, 'up'),
  link('link of a node half open, to it', 2, 10_000, 'down'),
  link('link of a node cut', 2, 5000, 'cut'),
  path('NATS blackholed for a replica', 'bus', 2, 10_000),
  path('PostgreSQL blackholed for a replica', 'store', 2, 14_000),
  service('kill -9 of PostgreSQL', 'postgres', 2, 'kill'),
  service('restart of PostgreSQL', 'postgres', 1, 'stop'),
  service('SIGSTOP of PostgreSQL', 'postgres', 1, 'freeze'),
  service('kill -9 of NATS', 'nats', 2, 'kill'),
  service('restart of NATS', 'nats', 1, 'stop'),
  service('SIGSTOP of NATS', 'nats', 1, 'freeze'),
];

export interface Planned {
  fault: Fault;
  place: number;
  /** Whom it meets, as the history says it. */
  target: string;
  /** After the first one could have begun. */
  at_ms: number;
  for_ms: number;
}

export interface Shape {
  replicas: number;
  nodes: number;
  /** Between two faults, on the average. */
  gap_ms: number;
  /** At once. */
  most: number;
  faults?: readonly Fault[];
}

/** For ever: whoever runs them ends it. None meets what another is still at, and not more than `most` overlap. */
export function* planFaults(random: () => number, shape: Shape): Generator<Planned, never> {
  const { replicas, nodes, gap_ms, most, faults = FAULTS } = shape;
  const places = {
    replica: replicas,
    bus: replicas,
    store: replicas,
    node: nodes,
    link: nodes,
    postgres: 1,
    nats: 1,
  };
  const total = faults.reduce((sum, { weight }) => sum + weight, 0);
  const healed_at_ms = new Map<string, number>();
  for (let at_ms = 0; ; ) {
    // Gaps that differ much: faults that meet each other, and rests in which all comes back.
    at_ms += Math.round(-gap_ms * Math.log(1 - random()));
    let left = random() * total;
    const fault = faults.find(({ weight }) => (left -= weight) < 0)!;
    const place = Math.floor(random() * places[fault.target]);
    const [least, longest] = fault.for_ms;
    const for_ms = Math.round(least + (longest - least) * random() ** 2);
    const target = places[fault.target] === 1 ? fault.target : `${fault.target} ${place + 1}`;
    for (const [one, until_ms] of healed_at_ms) if (until_ms <= at_ms) healed_at_ms.delete(one);
    if (healed_at_ms.has(target) || healed_at_ms.size >= most) continue;
    healed_at_ms.set(target, at_ms + for_ms);
    yield { fault, place, target, at_ms, for_ms };
  }
}

function processOf(fleet: Fleet, target: 'replica' | 'node', place: number) {
  return (target === 'replica' ? fleet.replicas : fleet.nodes)[place]!.process;
}

/**
 * Begins and heals faults as planned until `over`, then waits until all of them are healed. One whose target is not
 * healed in time (a slow start) is left out, and its turn is gone.
 * @returns how often each has been
 */
export async function breakThings(
  fleet: Fleet,
  plan: Iterator<Planned, never>,
  over: AbortSignal,
): Promise<Map<string, number>> {
  const began_ms = performance.now();
  const counts = new Map<string, number>();
  const healing = new Map<string, Promise<void>>();
  let number = 0;
  for (;;) {
    const { fault, place, target, at_ms, for_ms } = plan.next().value;
    if (!(await wait(began_ms + at_ms - performance.now(), over))) break;
    if (healing.has(target)) continue;
    counts.set(fault.name, (counts.get(fault.name) ?? 0) + 1);
    const meet = async (own: number): Promise<void> => {
      fleet.history.add({ type: 'fault', number: own, name: fault.name, target, for_ms });
      try {
        await fault.begin(fleet, place);
        await wait(for_ms, over);
        await fault.heal(fleet, place);
      } catch (error) {
        // Nothing else meets this target; the fault itself is found to be open.
        fleet.history.add({ type: 'unhealed', number: own, error: String(error) });
        return;
      }
      fleet.history.add({ type: 'healed', number: own, name: fault.name, target });
      healing.delete(target);
    };
    healing.set(target, meet(number++));
  }
  await Promise.all(healing.values());
  return counts;
}

/** @returns false at once when it is over */
function wait(ms: number, over: AbortSignal): Promise<boolean> {
  if (over.aborted) return Promise.resolve(false);
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      over.removeEventListener('abort', end);
      resolve(!over.aborted);
    };
    const timer = setTimeout(end, Math.max(0, ms));
    over.addEventListener('abort', end);
  });
}
