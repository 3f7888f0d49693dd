import {
  type Bus,
  type Clock,
  type FairShare,
  PRIORITY_STEP_MS,
  type Random,
  type Timer,
  closedBy,
  requestIn,
  stoodElsewhere,
} from '@flotilla/core';
import type { ActiveJob } from '../dispatch/active-job.ts';
import type { Places } from '../dispatch/places.ts';
import { type Waiter, type WaitingRoom, createWaitingRoom } from '../dispatch/waiting-room.ts';
import type { Channel } from './channel.ts';
import type { Announcement, Work } from './peer-messages.ts';

/**
 * Work that waits for a slot, told to those who may have one.
 *
 * Of ours: waiting ──50 ms, or at once where only nodes of others could serve it──▶ told to all ──200 ms──▶ told to each
 *          ──given away, or ended──▶ taken back.
 * Of others: told ──▶ known here, in the order of its key ──claimed, taken back, not told for 2 s──▶ gone.
 *
 * What all are told is a hint, and may be lost. What still waits is told to each on the channel to it, every 200 ms: a
 * channel sees what it loses, and begins anew with what waits.
 */
/** What is known of a job that waits at another replica. */
export interface OthersJob extends Waiter {
  readonly owner: string;
  /** Of its request; under another model's name it may be some bytes longer. */
  readonly body_length: number;
  told_ms: number;
}

export interface Announcements {
  /** Ours. */
  waits(job: ActiveJob): void;
  left(job: ActiveJob): void;
  /** Of the others. */
  readonly room: WaitingRoom<OthersJob>;
  take(from: string, work: Work): void;
  /** The channel is open anew: what was told on the former one may be lost. */
  synced(channel: Channel): void;
  forget(job: OthersJob): void;
  died(replica: string): void;
  close(): void;
}

const TELL_AFTER_MS = 50;
const TELL_AGAIN_MS = 200;
const FORGET_AFTER_MS = 2000;
/** In one message, with what their labels may come to: a bus takes no message of a megabyte. */
const TOLD_MOST = 100;
const TOLD_MOST_CHARACTERS = 256 * 1024;

export function createAnnouncements(deps: {
  bus: Pick<Bus, 'tell'>;
  places: Places;
  clock: Clock;
  random: Random;
  queue_bound: number;
  share: FairShare;
  /** Those who may have a slot. */
  channels: () => Iterable<Channel>;
  /** It is being asked for already. */
  claimed: (job: string) => boolean;
  /** Work came that was not known. */
  changed: () => void;
}): Announcements {
  const { bus, places, clock, share } = deps;
  const own = new Map<string, ActiveJob>();
  const starting = new Map<string, Timer>();
  const others = new Map<string, OthersJob>();
  const room = createWaitingRoom<OthersJob>(places, deps.random, deps.queue_bound);
  /** To be told with the next turn. */
  const fresh: ActiveJob[] = [];
  const gone: string[] = [];
  let telling = false;
  let again: Timer | null = null;
  let forgetting: Timer | null = null;

  return {
    room,
    waits(job) {
      if (!servedHere(job)) return announce(job);
      const timer = clock.after(TELL_AFTER_MS, () => {
        starting.delete(job.id);
        announce(job);
      });
      starting.set(job.id, timer);
    },
    left(job) {
      starting.get(job.id)?.cancel();
      starting.delete(job.id);
      if (!own.delete(job.id)) return;
      gone.push(job.id);
      tellSoon();
    },
    take,
    synced(channel) {
      if (own.size > 0) channel.send({ type: 'work', jobs: first() });
    },
    forget,
    died(replica) {
      for (const job of [...others.values()]) if (job.owner === replica) forget(job);
    },
    close() {
      for (const timer of starting.values()) timer.cancel();
      again?.cancel();
      forgetting?.cancel();
    },
  };

  /** Whether a node linked here is only full; else whoever is linked elsewhere is all there is. */
  function servedHere(job: ActiveJob): boolean {
    return places.tiers(job.request.model).some((tier) => {
      const asked = requestIn(job.placement, tier);
      const patient = asked === null ? [] : tier.spots.labelled(asked.labels).patient;
      return patient.some((spot) => closedBy(spot) === 'full');
    });
  }

  function announce(job: ActiveJob): void {
    own.set(job.id, job);
    fresh.push(job);
    tellSoon();
    again ??= clock.after(TELL_AGAIN_MS, tellAgain);
  }

  function tellAgain(): void {
    again = null;
    if (own.size === 0) return;
    again = clock.after(TELL_AGAIN_MS, tellAgain);
    const jobs = first();
    for (const channel of deps.channels()) channel.send({ type: 'work', jobs });
  }

  /** The first of the line go first. */
  function first(): Announcement[] {
    const sorted = [...own.values()].sort((a, b) => a.order_key - b.order_key);
    return batches(sorted.slice(0, TOLD_MOST))[0] ?? [];
  }

  /** What begins to wait in one turn is one message. */
  function tellSoon(): void {
    if (telling) return;
    telling = true;
    queueMicrotask(() => {
      telling = false;
      const jobs = fresh.splice(0).filter((job) => own.has(job.id));
      for (const batch of batches(jobs)) tell({ type: 'work', jobs: batch });
      const ids = gone.splice(0).filter((id) => !own.has(id));
      if (ids.length > 0) tell({ type: 'work.gone', jobs: ids });
    });
  }

  function tell(work: Work): void {
    bus.tell(Buffer.from(JSON.stringify(work)));
  }

  function take(from: string, work: Work): void {
    if (work.type === 'work.gone') {
      for (const id of work.jobs) {
        const job = others.get(id);
        if (job?.owner === from) forget(job);
      }
      return;
    }
    let news = false;
    for (const told of work.jobs) {
      const known = others.get(told.job);
      if (known !== undefined) known.told_ms = clock.now_ms();
      else if (!deps.claimed(told.job)) news = enter(from, told) || news;
    }
    forgetting ??= clock.after(FORGET_AFTER_MS, forgetOld);
    if (news) deps.changed();
  }

  function enter(owner: string, told: Announcement): boolean {
    const { job: id, key, model, operation, labels, order_key, priority, body_length } = told;
    const avoid = new Set(told.avoid);
    const refused_by = new Set(told.refused_by);
    const job: OthersJob = {
      id,
      owner,
      body_length,
      capability: model,
      lane: JSON.stringify([operation, labels, told.avoid, told.refused_by]),
      order_key,
      request: { model, priority },
      placement: { model, operation, labels, pin: null, avoid, refused_by, affinity: told.affinity },
      queued: false,
      told_ms: clock.now_ms(),
    };
    stoodElsewhere(share, key, order_key + Math.round(priority * PRIORITY_STEP_MS));
    if (!room.enter(job, false)) return false;
    others.set(id, job);
    return true;
  }

  function forget(job: OthersJob): void {
    if (others.get(job.id) !== job) return;
    others.delete(job.id);
    room.leave(job);
  }

  function forgetOld(): void {
    forgetting = null;
    const before_ms = clock.now_ms() - FORGET_AFTER_MS;
    for (const job of [...others.values()]) if (job.told_ms < before_ms) forget(job);
    if (others.size > 0) forgetting = clock.after(FORGET_AFTER_MS, forgetOld);
  }
}

function batches(jobs: readonly ActiveJob[]): Announcement[][] {
  const all: Announcement[][] = [];
  let room = 0;
  for (const told of jobs.map(announcement)) {
    const characters = JSON.stringify(told).length;
    room -= characters;
    if (room < 0 || all.at(-1)!.length === TOLD_MOST) {
      all.push([]);
      room = TOLD_MOST_CHARACTERS - characters;
    }
    all.at(-1)!.push(told);
  }
  return all;
}

function announcement({ id, placement, order_key, request }: ActiveJob): Announcement {
  const { model, operation, labels, avoid, refused_by, affinity } = placement;
  return {
    job: id,
    key: request.key,
    model,
    operation,
    labels: { ...labels },
    avoid: [...avoid],
    refused_by: [...refused_by],
    affinity,
    order_key,
    priority: request.priority,
    body_length: request.body.byteLength,
  };
}
