import { type Clock, type Timer, promise } from '@flotilla/core';
import type { BodyMemory } from '../body-memory.ts';
import type { ModelSpot } from '../fleet/node.ts';
import type { Channel } from './channel.ts';

/**
 * Slots of nodes linked here, and memory for requests, kept for jobs that wait at other replicas until those have answered.
 *
 *     kept ──claim──▶ claimed ──offer──▶ granted: its request comes (receiving.ts)
 *                        └── gone, 1 s, channel broken ──▶ free
 */
export interface Claims {
  /** Keeps the slot and so many bytes, and asks the owner for the job. */
  claim(owner: string, channel: Channel, job: string, kept: Kept): void;
  has(job: string): boolean;
  /** The owner gives the job. @returns what is kept for it; undefined: it was given up */
  granted(owner: string, job: string): Kept | undefined;
  /** The owner does not give the job. */
  gone(owner: string, job: string): void;
  /** The channel is open anew: what was asked on the former one is asked again. */
  synced(owner: string, channel: Channel): void;
  broken(owner: string): void;
}

/** What a job that is on its way here has of this replica. */
export interface Kept {
  readonly spot: ModelSpot;
  /** Of the budget of bodies. */
  readonly bytes: number;
}

interface Claim extends Kept {
  owner: string;
  timer: Timer;
}

const CLAIM_WITHIN_MS = 1000;

/** @param free gives back what was kept */
export function createClaims(clock: Clock, memory: BodyMemory, free: (kept: Kept) => void): Claims {
  const claims = new Map<string, Claim>();
  return {
    claim(owner, channel, job, { spot, bytes }) {
      promise(spot.node.ledger, spot.slots);
      memory.take(bytes);
      const timer = clock.after(CLAIM_WITHIN_MS, () => giveUp(job));
      claims.set(job, { owner, spot, bytes, timer });
      say(channel, job, spot);
    },
    has: (job) => claims.has(job),
    granted(owner, job) {
      const one = claims.get(job);
      if (one?.owner !== owner) return undefined;
      one.timer.cancel();
      claims.delete(job);
      return one;
    },
    gone(owner, job) {
      if (claims.get(job)?.owner === owner) giveUp(job);
    },
    synced(owner, channel) {
      for (const [job, { owner: of, spot }] of claims) if (of === owner) say(channel, job, spot);
    },
    broken(owner) {
      for (const [job, one] of [...claims]) if (one.owner === owner) giveUp(job);
    },
  };

  function say(channel: Channel, job: string, { node, backend, model }: ModelSpot): void {
    channel.send({ type: 'claim', job, node: node.id, epoch: node.epoch, backend, model });
  }

  function giveUp(job: string): void {
    const one = claims.get(job);
    if (one === undefined) return;
    one.timer.cancel();
    claims.delete(job);
    free(one);
  }
}
