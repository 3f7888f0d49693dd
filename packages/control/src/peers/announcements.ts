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
import { OPERATIONS } from '@flotilla/protocol';
import { z } from 'zod';
import type { ActiveJob } from '../dispatch/active-job.ts';
import type { Places } from '../dispatch/places.ts';
import { type Waiter, type WaitingRoom, createWaitingRoom } from '../dispatch/waiting-room.ts';

/**
 * Work that waits for a slot, told to those who may have one.
 *
 * Of ours: waiting ──50 ms, or at once where only nodes of others could serve it──▶ told (again every 500 ms, since what
 * is told may be lost) ──given away, or ended──▶ taken back.
 * Of others: told ──▶ known here, in the order of its key ──claimed, taken back, not told for 2 s──▶ gone.
 */
const announcementSchema = z.object({
  job: z.string().max(64),
  key: z.string().max(64),
  model: z.string().max(512),
  operation: z.enum(OPERATIONS),
  labels: z.record(z.string(), z.string()),
  avoid: z.array(z.string()),
  refused_by: z.array(z.string()),
  affinity: z.string().nullable(),
  order_key: z.number(),
  priority: z.number(),
});
export const workSchema = z.discriminatedUnion('type', [
  z.object({ type: z.literal('work'), jobs: z.array(announcementSchema) }),
  z.object({ type: z.literal('work.gone'), jobs: z.array(z.string().max(64)) }),
]);
type Announcement = z.infer<typeof announcementSchema>;
type Work = z.infer<typeof workSchema>;

/** What is known of a job that waits at another replica. */
interface OthersJob extends Waiter {
  readonly owner: string;
  told_ms: number;
}

export interface Announcements {
  /** Ours. */
  waits(job: ActiveJob): void;
  left(job: ActiveJob): void;
  /** Of the others. */
  readonly room: WaitingRoom<OthersJob>;
  take(from: string, work: Work): void;
  forget(job: OthersJob): void;
  died(replica: string): void;
  close(): void;
}

const TELL_AFTER_MS = 50;
const TELL_AGAIN_MS = 500;
const FORGET_AFTER_MS = 2000;
/** In one message; the first of the line go first. */
const TOLD_MOST = 100;

export function createAnnouncements(
  bus: Bus,
  places: Places,
  clock: Clock,
  random: Random,
  bound: number,
  share: FairShare,
  /** It is being asked for already. */
  claimed: (job: string) => boolean,
  changed: () => void,
): Announcements {
  const own = new Map<string, ActiveJob>();
  const starting = new Map<string, Timer>();
  const others = new Map<string, OthersJob>();
  const room = createWaitingRoom<OthersJob>(places, random, bound);
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
    const first = [...own.values()].sort((a, b) => a.order_key - b.order_key).slice(0, TOLD_MOST);
    tell({ type: 'work', jobs: first.map(announcement) });
  }

  /** What begins to wait in one turn is one message. */
  function tellSoon(): void {
    if (telling) return;
    telling = true;
    queueMicrotask(() => {
      telling = false;
      const jobs = fresh.splice(0).filter((job) => own.has(job.id));
      for (let at = 0; at < jobs.length; at += TOLD_MOST) {
        tell({ type: 'work', jobs: jobs.slice(at, at + TOLD_MOST).map(announcement) });
      }
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
      else if (!claimed(told.job)) news = enter(from, told) || news;
    }
    forgetting ??= clock.after(FORGET_AFTER_MS, forgetOld);
    if (news) changed();
  }

  function enter(owner: string, told: Announcement): boolean {
    const { job: id, key, model, operation, labels, order_key, priority } = told;
    const avoid = new Set(told.avoid);
    const refused_by = new Set(told.refused_by);
    const job: OthersJob = {
      id,
      owner,
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
  };
}
