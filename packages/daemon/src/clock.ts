import { randomBytes } from 'node:crypto';
import type { Clock, Random } from '@flotilla/core';

/** This machine's time and chance, for the ports that the rules take them through. */
export const systemClock: Clock = {
  now_ms: () => performance.now(),
  wall_ms: () => Date.now(),
  after(delay_ms, run) {
    if (delay_ms <= 0) {
      const turn_end = setImmediate(run);
      return { cancel: () => clearImmediate(turn_end) };
    }
    const timer = setTimeout(run, delay_ms);
    return { cancel: () => clearTimeout(timer) };
  },
};

export const systemRandom: Random = {
  next: () => randomBytes(4).readUInt32BE() / 0x1_0000_0000,
  bytes: (length) => randomBytes(length),
};
