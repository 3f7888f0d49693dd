import {
  type Lane,
  type Lanes,
  type Placement,
  type PlacementRequest,
  PRIORITY_STEP_MS,
  type Random,
  type Refusal,
  type Waiting,
  newLanes,
  placeInOrder,
} from '@flotilla/core';
import type { FleetNode, ModelSpot } from '../fleet/node.ts';
import { type Places, mayTake } from './places.ts';

/**
 * Where jobs wait for a slot, and who goes next. A job is in at most one lane; it leaves by being offered, by ending,
 * or because nobody can serve it any more.
 */
/** What stands in a room: a job of this replica, or what it knows of another's. */
export interface Waiter extends Waiting {
  readonly request: { readonly model: string; readonly priority: number };
  readonly placement: PlacementRequest;
  queued: boolean;
}

export interface WaitingRoom<J extends Waiter> {
  readonly lanes: Lanes<J>;
  place(job: J): Placement<ModelSpot>;
  /** False: too many wait for this model already. A job that was in before is always let in again. */
  enter(job: J, again: boolean): boolean;
  leave(job: J): void;
  /** The order key, without its priority, of who goes first for this model; undefined: nobody waits for it. */
  headOf(model: string): number | undefined;
  /** Of all who wait, the one that goes first on a free slot of this node. */
  firstFor(node: FleetNode): { job: J; spot: ModelSpot } | null;
  /**
   * Any who could be served now although no slot has become free: a node that had failed them is the last one left.
   * It has left the room.
   */
  takeAny(): { job: J; spot: ModelSpot } | null;
  /** Those whom nobody can serve, and nobody who could may return, with the reasons. */
  hopeless(): { jobs: J[]; refusals: Refusal[] }[];
}

export function createWaitingRoom<J extends Waiter>(
  places: Places,
  random: Random,
  bound: number,
): WaitingRoom<J> {
  const lanes = newLanes<J>(bound);
  const room: WaitingRoom<J> = {
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

  function firstFor(node: FleetNode): { job: J; spot: ModelSpot } | null {
    let first: { job: J; spot: ModelSpot } | null = null;
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

  function allLanes(): Lane<J>[] {
    return [...lanes.byCapability.values()].flatMap((group) => [...group.lanes.values()]);
  }
}

export function goesBefore(a: Waiting, b: Waiting): boolean {
  return a.order_key < b.order_key || (a.order_key === b.order_key && a.id < b.id);
}
