import {
  type Lane,
  type Lanes,
  type Placement,
  PRIORITY_STEP_MS,
  type Random,
  type Refusal,
  newLanes,
  placeInOrder,
} from '@flotilla/core';
import type { FleetNode, ModelSpot } from '../fleet/node.ts';
import type { ActiveJob } from './active-job.ts';
import { type Places, mayTake } from './places.ts';

/**
 * Where jobs wait for a slot, and who goes next. A job is in at most one lane; it leaves by being offered, by ending,
 * or because nobody can serve it any more.
 */
export interface WaitingRoom {
  readonly lanes: Lanes<ActiveJob>;
  place(job: ActiveJob): Placement<ModelSpot>;
  /** False: too many wait for this model already. A job that was in before is always let in again. */
  enter(job: ActiveJob, again: boolean): boolean;
  leave(job: ActiveJob): void;
  /** The order key, without its priority, of who goes first for this model; undefined: nobody waits for it. */
  headOf(model: string): number | undefined;
  /** Of all who wait, the one that goes first on a free slot of this node. */
  firstFor(node: FleetNode): { job: ActiveJob; spot: ModelSpot } | null;
  /**
   * Any who could be served now although no slot has become free: a node that had failed them is the last one left.
   * It has left the room.
   */
  takeAny(): { job: ActiveJob; spot: ModelSpot } | null;
  /** Those whom nobody can serve, and nobody who could may return, with the reasons. */
  hopeless(): { jobs: ActiveJob[]; refusals: Refusal[] }[];
}

export function createWaitingRoom(places: Places, random: Random, bound: number): WaitingRoom {
  const lanes = newLanes<ActiveJob>(bound);
  const room: WaitingRoom = {
    lanes,
    place: (job) => placeInOrder(job.placement, places.tiers(job.request.model), random.next),
    enter(job, again) {
      job.queued = lanes.push(job, again);
      return job.queued;
    },
    leave(job) {
      if (job.queued) lanes.remove(job);
      job.queued = false;
    },
    headOf(model) {
      let first: number | undefined;
      for (const lane of lanes.byCapability.get(model)?.lanes.values() ?? []) {
        const head = lanes.head(lane)!;
        const at = head.order_key + Math.round(head.request.priority * PRIORITY_STEP_MS);
        if (first === undefined || at < first) first = at;
      }
      return first;
    },
    firstFor: (node) => (lanes.count === 0 || node.state !== 'online' ? null : firstFor(node)),
    takeAny() {
      for (const lane of allLanes()) {
        const job = lanes.head(lane)!;
        const placement = room.place(job);
        if (placement.kind !== 'placed') continue;
        room.leave(job);
        return { job, spot: placement.spot };
      }
      return null;
    },
    hopeless: () =>
      allLanes().flatMap((lane) => {
        // Jobs of a lane are served by the same nodes, so its head speaks for all.
        const placement = room.place(lanes.head(lane)!);
        return placement.kind === 'nobody' ? [{ jobs: [...lane.heap], refusals: placement.refusals }] : [];
      }),
  };
  return room;

  function firstFor(node: FleetNode): { job: ActiveJob; spot: ModelSpot } | null {
    let first: { job: ActiveJob; spot: ModelSpot } | null = null;
    for (const spot of node.spots) {
      for (const model of places.servedBy(spot)) {
        const group = lanes.byCapability.get(model);
        if (group === undefined) continue;
        for (const lane of group.lanes.values()) {
          const job = lanes.head(lane)!;
          if (first !== null && !goesBefore(job, first.job)) continue;
          if (mayTake(places, random, job.placement, spot)) first = { job, spot };
        }
      }
    }
    return first;
  }

  function allLanes(): Lane<ActiveJob>[] {
    return [...lanes.byCapability.values()].flatMap((group) => [...group.lanes.values()]);
  }
}

function goesBefore(a: ActiveJob, b: ActiveJob): boolean {
  return a.order_key < b.order_key || (a.order_key === b.order_key && a.id < b.id);
}
