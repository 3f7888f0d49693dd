import { seededRandom } from './seeded-random.ts';

/** Broken variants of sound messages and frames, the same ones for the same seed. */
export interface Mutator {
  /** Uniform in [0, most). */
  below(most: number): number;
  pick<T>(from: readonly T[]): T;
  /** A message as text, broken in its values or in its characters; now and then still sound. */
  text(message: unknown): string;
  /** A frame with some bytes changed, missing, repeated or added. */
  bytes(frame: Uint8Array): Buffer;
}

const ODD_VALUES: readonly unknown[] = [
  null,
  true,
  '',
  'x'.repeat(300),
  '\0',
  '\ud800',
  '__proto__',
  -1,
  0,
  0.5,
  1e308,
  -1e308,
  2 ** 31,
  2 ** 53,
  [],
  {},
  [[]],
  { type: 'error' },
  JSON.parse('{"__proto__":{"type":"job.started"},"constructor":1}'),
  Array.from({ length: 300 }, (_, index) => ({ id: `i${index}` })),
];

export function createMutator(seed: number): Mutator {
  const next = seededRandom(seed);
  const below = (most: number) => Math.floor(next() * most);
  const pick = <T>(from: readonly T[]): T => from[below(from.length)]!;
  return { below, pick, text, bytes };

  function text(message: unknown): string {
    const copy = structuredClone(message);
    for (let count = below(4); count > 0; count--) breakValue(copy);
    const whole = JSON.stringify(copy);
    return next() < 0.6 ? whole : bytes(Buffer.from(whole)).toString('latin1');
  }

  /** Replaces, adds or takes away one member, somewhere. */
  function breakValue(value: unknown): void {
    if (typeof value !== 'object' || value === null) return;
    const holder = value as Record<string, unknown>;
    const names = Object.keys(holder);
    if (names.length === 0) return;
    const name = pick(names);
    const inner = holder[name];
    if (typeof inner === 'object' && inner !== null && next() < 0.7) breakValue(inner);
    else if (next() < 0.15) Reflect.deleteProperty(holder, name);
    else if (next() < 0.1) holder[`more-${below(1000)}`] = structuredClone(pick(ODD_VALUES));
    else holder[name] = structuredClone(pick(ODD_VALUES));
  }

  function bytes(frame: Uint8Array): Buffer {
    let result = Buffer.from(frame);
    for (let count = 1 + below(4); count > 0; count--) {
      const at = below(result.length + 1);
      const length = 1 + below(8);
      switch (below(5)) {
        case 0:
          if (at < result.length) result[at] = below(256);
          break;
        case 1:
          result = result.subarray(0, at);
          break;
        case 2:
          result = Buffer.concat([result.subarray(0, at), result.subarray(at + length)]);
          break;
        case 3:
          result = Buffer.concat([result.subarray(0, at), result.subarray(Math.max(0, at - length))]);
          break;
        default:
          result = Buffer.concat([
            result.subarray(0, at),
            Buffer.from(Array.from({ length }, () => below(256))),
            result.subarray(at),
          ]);
      }
    }
    return result;
  }
}
