import { type Clock, type Timer, type Timings, nextLivenessDeadline } from '@flotilla/core';
import type { FleetNode } from './node.ts';

/**
 * Wakes when a node's silence next changes something. Nodes stand in the order of their last beat, so one timer for
 * the first of them is enough, and a beat costs one move to the end.
 *
 * A replica that stood still (a busy processor, a sleeping machine) finds its timers due before it has read a socket:
 * so what has arrived is read first, and only then is anybody silent.
 */
export interface Watch {
  /** The node was heard of just now. */
  touch(node: FleetNode): void;
  forget(node: FleetNode): void;
  close(): void;
}

export function createWatch(clock: Clock, timings: Timings, due: (node: FleetNode) => void): Watch {
  const by_last_beat = new Set<FleetNode>();
  let timer: Timer | null = null;
  let armed_for_ms = Infinity;

  return {
    touch(node) {
      by_last_beat.delete(node);
      by_last_beat.add(node);
      // A node that is awaited has a later deadline than one that comes after it.
      if (timer === null || (nextLivenessDeadline(node.liveness, timings) ?? Infinity) < armed_for_ms) arm();
    },
    forget: (node) => void by_last_beat.delete(node),
    close() {
      timer?.cancel();
      by_last_beat.clear();
    },
  };

  function arm(): void {
    let next_ms = Infinity;
    for (const node of by_last_beat) {
      const deadline_ms = nextLivenessDeadline(node.liveness, timings);
      if (deadline_ms === null) by_last_beat.delete(node);
      else next_ms = Math.min(next_ms, deadline_ms);
      // Everybody behind the first online node was heard of later than it.
      if (node.liveness.state === 'online') break;
    }
    timer?.cancel();
    armed_for_ms = next_ms;
    timer = next_ms === Infinity ? null : clock.after(Math.max(1, next_ms - clock.now_ms()), readFirst);
  }

  function readFirst(): void {
    timer = clock.after(0, check);
  }

  function check(): void {
    const now_ms = clock.now_ms();
    for (const node of [...by_last_beat]) {
      const deadline_ms = nextLivenessDeadline(node.liveness, timings);
      if (deadline_ms !== null && deadline_ms <= now_ms) due(node);
      else if (node.liveness.state === 'online') break;
    }
    arm();
  }
}
