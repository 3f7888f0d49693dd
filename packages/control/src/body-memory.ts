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
  /** How many more bodies of this size fit; with nothing held one does, however small the budget. */
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
    room: (body_bytes) => Math.max(held === 0 ? 1 : 0, Math.floor((limit_bytes - held) / body_bytes)),
  };
}
