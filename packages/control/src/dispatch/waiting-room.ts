import {
  type Lane,
  type Lanes,
  type Placement,
  type Random,
  type Spot,
  newLanes,
  place,
  refusal,
} from '@flotilla/core';
import type { FleetNode, ModelSpot } from '../fleet/node.ts';
import type { Roster } from '../fleet/roster.ts';
import type { ActiveJob } from './active-job.ts';

/**
 * Where jobs wait for a slot, and who goes next. A job is in at most one lane; it leaves by being offered, by ending,
 * or because nobody can serve it any more.
 */
export interface WaitingRoom {
  readonly lanes: Lanes<ActiveJob>;
  place(job: ActiveJob): Placement;
  /** False: too many wait for this model already. A job that was in before is always let in again. */
  enter(job: ActiveJob, again: boolean): boolean;
  leave(job: ActiveJob): void;
  /** Of all who wait, the one that goes first on a free slot of this node; it has left the room. */
  takeFor(node: FleetNode): { job: ActiveJob; spot: ModelSpot } | null;
  /**
   * Any who could be served now although no slot has become free: a node that had failed them is the last one left.
   * It has left the room.
   */
  takeAny(): { job: ActiveJob; spot: ModelSpot } | null;
  /** Those whom nobody can serve, and nobody who could may return. */
  hopeless(): ActiveJob[];
}

export function createWaitingRoom(roster: Roster, random: Random, bound: number): WaitingRoom {
  const lanes = newLanes<ActiveJob>(bound);
  const room: WaitingRoom = {
    lanes,
    place: (job) => place(job.placement, roster.spots(job.request.model), random.next),
    enter(job, again) {
      job.queued = lanes.push(job, again);
      return job.queued;
    },
    leave(job) {
      if (job.queued) lanes.remove(job);
      job.queued = false;
    },
    takeFor(node) {
      if (lanes.count === 0 || node.state !== 'online') return null;
      const next = firstFor(node);
      if (next !== null) room.leave(next.job);
      return next;
    },
    takeAny() {
      for (const lane of allLanes()) {
        const job = lanes.head(lane)!;
        const placement = room.place(job);
        if (placement.kind !== 'placed') continue;
        room.leave(job);
        return { job, spot: placement.spot as ModelSpot };
      }
      return null;
    },
    hopeless: () =>
      allLanes()
        .filter(isHopeless)
        .flatMap((lane) => lane.heap),
  };
  return room;

  function firstFor(node: FleetNode): { job: ActiveJob; spot: ModelSpot } | null {
    let first: { job: ActiveJob; spot: ModelSpot } | null = null;
    for (const spot of node.spots) {
      const group = lanes.byCapability.get(spot.model);
      if (group === undefined) continue;
      for (const lane of group.lanes.values()) {
        const job = lanes.head(lane)!;
        if (first !== null && !goesBefore(job, first.job)) continue;
        if (canTake(job, spot)) first = { job, spot };
      }
    }
    return first;
  }

  /** A node that has failed a job gets it again only where nobody else could serve it. */
  function canTake(job: ActiveJob, spot: ModelSpot): boolean {
    if (refusal(job.placement, spot) !== null) return false;
    if (!job.placement.avoid.has(spot.node.id)) return true;
    const placement = room.place(job);
    return placement.kind === 'placed' && (placement.spot as Spot) === spot;
  }

  function allLanes(): Lane<ActiveJob>[] {
    return [...lanes.byCapability.values()].flatMap((group) => [...group.lanes.values()]);
  }

  /** Jobs of a lane are served by the same nodes, so its head speaks for all. */
  function isHopeless(lane: Lane<ActiveJob>): boolean {
    return room.place(lanes.head(lane)!).kind === 'nobody';
  }
}

function goesBefore(a: ActiveJob, b: ActiveJob): boolean {
  return a.order_key < b.order_key || (a.order_key === b.order_key && a.id < b.id);
}
