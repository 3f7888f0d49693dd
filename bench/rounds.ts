import { median, quantile } from './histogram.ts';
import { interrupt } from './interrupt.ts';

/**
 * Targets are measured interleaved: in each round each of them once, in an order of its own. A machine that is slow for a
 * while is slow for all of them, so what is compared is pairs of the same round.
 */
export async function interleave<T, R>(
  targets: readonly T[],
  rounds: number,
  measure: (target: T, round: number) => Promise<R>,
): Promise<Map<T, R[]>> {
  const results = new Map<T, R[]>(targets.map((target) => [target, []]));
  for (let round = 0; round < rounds; round++) {
    for (const target of rotated(targets, round)) {
      interrupt.signal.throwIfAborted();
      results.get(target)!.push(await measure(target, round));
    }
  }
  return results;
}

/** Each round begins with another one, and every second goes backwards: nobody is always after the same neighbour. */
function rotated<T>(targets: readonly T[], round: number): T[] {
  const by = round % targets.length;
  const turned = [...targets.slice(by), ...targets.slice(0, by)];
  return round % 2 === 0 ? turned : turned.reverse();
}

/** Of the rounds, or of pairs in them: the median, the lowest and the highest. */
export interface Paired {
  median: number;
  low: number;
  high: number;
}

function pair(of: readonly number[], to: readonly number[], how: (a: number, b: number) => number): Paired {
  const values = of.map((value, round) => how(value, to[round]!)).toSorted((a, b) => a - b);
  return { median: median(values), low: quantile(values, 0), high: quantile(values, 1) };
}

/** Of values that are compared with nothing. */
export function middle(values: readonly number[]): Paired {
  return pair(values, values, (value) => value);
}

export function ratio(of: readonly number[], to: readonly number[]): Paired {
  return pair(of, to, (a, b) => a / b);
}

export function difference(of: readonly number[], to: readonly number[]): Paired {
  return pair(of, to, (a, b) => a - b);
}
