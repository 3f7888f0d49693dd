/**
 * The budget of this process for bodies in memory: requests of attached and of claimed jobs, those of other replicas'
 * clients included, and the results of detached ones until they are committed. What would go beyond it is refused (requests
 * of clients here) or not claimed yet.
 */
export interface BodyMemory {
  readonly held_bytes: number;
  fits(bytes: number): boolean;
  /** Without asking: it is here already. */
  take(bytes: number): void;
  give(bytes: number): void;
  /** How many bytes more fit, where a body of this size does; else 0. With nothing held one does, however small the budget. */
  room(body_bytes: number): number;
}

export function createBodyMemory(limit_bytes: number): BodyMemory {
  let held = 0;
  return {
    get held_bytes() {
      return held;
    },
    fits: (bytes) => held + bytes <= limit_bytes,
    take(bytes) {
      held += bytes;
    },
    give(bytes) {
      held -= bytes;
    },
    room(body_bytes) {
      const left = limit_bytes - held;
      if (left >= body_bytes) return left;
      return held === 0 ? body_bytes : 0;
    },
  };
}
