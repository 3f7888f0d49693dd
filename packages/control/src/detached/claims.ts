import {
  type ClaimedJob,
  type ClaimedLane,
  type Clock,
  type Log,
  type Random,
  type Store,
  placeInOrder,
  promise,
  withdrawPromise,
} from '@flotilla/core';
import { type Places, mayTake } from '../dispatch/places.ts';
import { type FleetNode, type ModelSpot, UNSETTLED_MOST } from '../fleet/node.ts';
import { type ReadyLane, type ReadyLanes, wants } from './ready-lanes.ts';

/**
 * Claims: slots of nodes linked to this replica, and of providers, turned into jobs of the store. A slot is reserved before it is asked
 * for and free again when no job came for it, so what is claimed always has a place; an offer leaves only when its
 * claim is committed. One statement at a time: what becomes free meanwhile goes into the next one.
 *
 *     slot free ──plan──▶ planned ──claim sent──▶ asked for ──▶ a job's slot, or free again
 *
 * A claim waits for what nodes that came back are being asked about: a job whose result is already here would be done
 * again, and by the very node that has it, whose slots are free. What came after the claim was sent is too late: the
 * job is somebody else's then.
 *
 * Nothing is claimed where no lane is known to have a job: an idle fleet asks the store nothing.
 */
export interface ClaimsDeps {
  clock: Clock;
  random: Random;
  log: Log;
  store: Pick<Store, 'claimJobs' | 'heldJobs'>;
  replica: string;
  places: Places;
  ready: ReadyLanes;
  /** There is memory for requests of so many bytes together, and for the largest one; else 0. */
  room_bytes(): number;
  largest_bytes: number;
  offer(claimed: ClaimedJob, spot: ModelSpot): void;
  /** A claim that found no place after all: it goes back at once, never having been offered. */
  giveBack(claimed: ClaimedJob): void;
  /**
   * It is not known what a claim took: what these nodes hold by the store's account is to be looked at. Called again
   * when it rejects.
   */
  uncertain(nodes: FleetNode[]): Promise<void>;
  /** Resolves when it is known whose the results are that nodes have come back with. */
  results(): Promise<unknown>;
  /** Slots of the node are free again. */
  freed(node: FleetNode): void;
}

export interface Claims {
  /** Work may be ready, or places free: plans for all lanes, once for all who ask in one turn. */
  wake(): void;
  /**
   * Reserves a slot of the node for the lane that goes before all, if that has a smaller order key than this one.
   * @param order_key of the attached job that would get the slot; null: none would
   */
  takeBefore(node: FleetNode, order_key: number | null): boolean;
  /** Resolves when no claim is under way; none begins after. */
  close(): Promise<void>;
}

/** Of one statement, whose requests are bounded by the memory that there is for them. */
const CLAIM_MOST = 256;
/** Of one answer, beside the largest request: it is read in one go, and is in nobody's account until then. */
const CLAIM_BYTES_MOST = 16 * 1024 * 1024;
/** After a claim that failed. */
const RETRY_MS = 500;
/** While there is no memory for another request. */
const MEMORY_RETRY_MS = 250;

interface Plan {
  lane: ReadyLane;
  spot: ModelSpot;
  epoch: number;
}

export function createClaims(deps: ClaimsDeps): Claims {
  const { clock, random, log, store, replica, places, ready } = deps;
  let plans: Plan[] = [];
  /** So many slots are asked for at once: as many as requests like the last ones fit into one answer. */
  let slots_most = CLAIM_MOST;
  let waking = false;
  let starved = false;
  let running: Promise<void> | null = null;
  let closed = false;
  return {
    wake,
    takeBefore,
    async close() {
      closed = true;
      await running;
    },
  };

  function wake(): void {
    if (waking || closed) return;
    waking = true;
    clock.after(0, () => {
      waking = false;
      const wanting = ready.wanting();
      for (const lane of wanting) planFor(lane);
      if (wanting.length > 0 && deps.room_bytes() === 0) wakeWhenThereIsRoom();
      send();
    });
  }

  function mayPlan(): boolean {
    return plans.length < slots_most && deps.room_bytes() > 0;
  }

  function planFor(lane: ReadyLane): void {
    while (wants(lane) && mayPlan()) {
      const placement = placeInOrder(lane.placement, places.tiers(lane.placement.model), random.next);
      if (placement.kind !== 'placed' || placement.spot.node.unsettled >= UNSETTLED_MOST) return;
      plan(lane, placement.spot);
    }
  }

  function takeBefore(node: FleetNode, order_key: number | null): boolean {
    if (ready.none || closed || node.state !== 'online' || !mayPlan()) return false;
    if (node.unsettled >= UNSETTLED_MOST) return false;
    let best: { lane: ReadyLane; spot: ModelSpot } | null = null;
    for (const spot of node.spots) {
      for (const lane of places.servedBy(spot).flatMap((model) => [...ready.ofModel(model)])) {
        if (!wants(lane) || (best !== null && best.lane.order_key <= lane.order_key)) continue;
        if (order_key !== null && lane.order_key >= order_key) continue;
        if (mayTake(places, random, lane.placement, spot)) best = { lane, spot };
      }
    }
    if (best === null) return false;
    plan(best.lane, best.spot);
    if (!waking) {
      waking = true;
      clock.after(0, () => {
        waking = false;
        send();
      });
    }
    return true;
  }

  function plan(lane: ReadyLane, spot: ModelSpot): void {
    promise(spot.node.ledger, spot.slots);
    lane.planned++;
    plans.push({ lane, spot, epoch: spot.node.epoch });
  }

  function send(): void {
    if (running !== null || plans.length === 0) return;
    running = claim().finally(() => {
      running = null;
      if (closed) unplan(plans.splice(0));
      else {
        send();
        wakeIfWanted();
      }
    });
  }

  function wakeIfWanted(): void {
    if (ready.wanting().length > 0) wake();
  }

  /** Bodies go without a word; whoever waits for their memory looks again. */
  function wakeWhenThereIsRoom(): void {
    if (starved || closed) return;
    starved = true;
    clock.after(MEMORY_RETRY_MS, () => {
      starved = false;
      wake();
    });
  }

  async function claim(): Promise<void> {
    const asked = plans;
    plans = [];
    const lanes = new Map(asked.map(({ lane }) => [lane, { hints: lane.hints, from: lane.from_order_key }]));
    for (const lane of lanes.keys()) lane.from_order_key = Infinity;
    let claimed: ClaimedJob[];
    // After the plans were taken: those of a node that comes back meanwhile wait for what it comes back with.
    await deps.results();
    const bytes_most = Math.min(deps.room_bytes(), deps.largest_bytes + CLAIM_BYTES_MOST);
    if (bytes_most === 0) {
      // What came meanwhile has taken the memory.
      for (const [lane, { from }] of lanes) readFrom(lane, from);
      unplan(asked);
      return wakeWhenThereIsRoom();
    }
    try {
      claimed = await store.claimJobs({
        replica,
        lanes: askedFor(asked, (lane) => lanes.get(lane)!.from),
        limit: asked.length,
        bytes_most,
      });
    } catch (error) {
      for (const [lane, { from }] of lanes) readFrom(lane, from);
      log.warn({ error }, 'Ready jobs could not be claimed; it will be tried again.');
      await findTaken([...new Set(asked.map(({ spot }) => spot.node))]);
      unplan(asked);
      return;
    }
    const left = new Map<string, Plan[]>();
    for (const one of asked) {
      const same = left.get(placeText(one.lane.text, one.spot.node.id));
      if (same === undefined) left.set(placeText(one.lane.text, one.spot.node.id), [one]);
      else same.push(one);
    }
    let bytes = 0;
    const last = new Map<string, number>();
    for (const job of claimed) {
      bytes += job.request_bytes;
      const own = left.get(placeText(job.lane, job.node))?.pop();
      if (own === undefined) {
        deps.giveBack(job);
        continue;
      }
      countDown(own.lane, job);
      free(own);
      const { node } = own.spot;
      const there = node.link?.open === true && node.epoch === job.epoch && node.state === 'online';
      if (there && job.request !== null) deps.offer(job, own.spot);
      else deps.giveBack(job);
    }
    for (const { lane: text, order_key } of claimed) last.set(text, order_key);
    for (const [lane, { from }] of lanes) readFrom(lane, last.get(lane.text) ?? from);
    // A lane that gave less than it was asked for is empty, unless it was heard of meanwhile, or its jobs were too large.
    const full = bytes + deps.largest_bytes > bytes_most;
    slots_most =
      full && bytes > 0 ? Math.min(CLAIM_MOST, Math.ceil((bytes_most * claimed.length) / bytes)) : CLAIM_MOST;
    const unused = [...left.values()].flat();
    for (const { lane } of unused) {
      if (lanes.get(lane)!.hints === lane.hints && !full) ready.forget(lane);
      else lane.jobs = Math.max(1, lane.jobs);
    }
    unplan(unused);
  }

  /** Unless it was heard of a job that goes before. */
  function readFrom(lane: ReadyLane, order_key: number): void {
    lane.from_order_key = Math.min(lane.from_order_key, order_key);
  }

  /**
   * Until it is known: what such a claim took has the epoch of a connection that lives, so no sweep finds it, and its
   * node has never heard of it.
   */
  async function findTaken(nodes: FleetNode[]): Promise<void> {
    for (;;) {
      await pause(RETRY_MS);
      try {
        return await deps.uncertain(nodes);
      } catch (error) {
        log.debug({ error }, 'What a claim in doubt took could not be looked for; it will be tried again.');
        if (closed) return;
      }
    }
  }

  function askedFor(asked: Plan[], fromOf: (lane: ReadyLane) => number): ClaimedLane[] {
    const rows = new Map<string, ClaimedLane>();
    for (const { lane, spot, epoch } of asked) {
      const key = placeText(lane.text, spot.node.id);
      const row = rows.get(key);
      if (row === undefined) {
        const from_order_key = fromOf(lane);
        rows.set(key, { lane: lane.text, node: spot.node.id, epoch, free: 1, from_order_key });
      } else row.free++;
    }
    return [...rows.values()];
  }

  function countDown(lane: ReadyLane, { order_key, priority }: ClaimedJob): void {
    lane.jobs = Math.max(0, lane.jobs - 1);
    if (order_key > lane.order_key) Object.assign(lane, { order_key, priority });
  }

  function free({ lane, spot }: Plan): void {
    lane.planned--;
    withdrawPromise(spot.node.ledger, spot.slots);
    if (lane.jobs === 0 && lane.planned === 0) ready.forget(lane);
  }

  function unplan(some: Plan[]): void {
    for (const one of some) free(one);
    for (const node of new Set(some.map(({ spot }) => spot.node))) deps.freed(node);
  }

  function pause(ms: number): Promise<void> {
    return new Promise((over) => void clock.after(ms, over));
  }
}

function placeText(lane: string, node: string): string {
  return `${node} ${lane}`;
}
