/**
 * Time, passed in. `now_ms` is monotonic and only ever compared with itself on the same machine; `wall_ms` stamps rows
 * and messages for people and decides nothing.
 */
export interface Clock {
  now_ms(): number;
  wall_ms(): number;
  /**
   * Calls `run` once after `delay_ms`; cancelling twice, or after it ran, does nothing. Without a delay: once what has
   * arrived in this turn is dealt with.
   */
  after(delay_ms: number, run: () => void): Timer;
}

export interface Timer {
  cancel(): void;
}

/** Randomness, passed in: a simulation replays it from a seed. */
export interface Random {
  /** Uniform in [0, 1). */
  readonly next: () => number;
  bytes(length: number): Uint8Array;
}
