/**
 * How fast each model is served, for `Retry-After`: a moving average of how long a slot was held. Bounded by the number
 * of models that nodes offer; unknown ones fall back to a second.
 */
const WEIGHT = 0.2;
const MODELS_MOST = 5000;
const UNKNOWN_MS = 1000;
const LEAST_MS = 500;
const MOST_MS = 60_000;

export interface ServiceRate {
  held(model: string, ms: number): void;
  /** When a request that finds `waiting` before it is likely to get a slot. */
  retryAfter(model: string, waiting: number, slots: number): number;
}

export function newServiceRate(): ServiceRate {
  const mean_ms = new Map<string, number>();
  return {
    held(model, ms) {
      const before = mean_ms.get(model);
      if (before === undefined && mean_ms.size >= MODELS_MOST) return;
      mean_ms.set(model, before === undefined ? ms : before + WEIGHT * (ms - before));
    },
    retryAfter(model, waiting, slots) {
      const each_ms = (mean_ms.get(model) ?? UNKNOWN_MS) / Math.max(1, slots);
      return Math.min(MOST_MS, Math.max(LEAST_MS, Math.round((waiting + 1) * each_ms)));
    },
  };
}
