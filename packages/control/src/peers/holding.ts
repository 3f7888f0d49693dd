import { type Clock, withdrawPromise } from '@flotilla/core';
import type { Frame } from '@flotilla/protocol';
import type { BodyMemory } from '../body-memory.ts';
import type { Dispatcher } from '../dispatch/dispatcher.ts';
import { type Adoptions, createAdoptions } from './adoptions.ts';
import type { Channel } from './channel.ts';
import { type Claims, type Kept, createClaims } from './claims.ts';
import { type HeldJobs, createHeldJobs } from './held.ts';
import type { PeerMessage, PeerMessageOf } from './peer-messages.ts';
import { createReceiving } from './receiving.ts';

/**
 * The side of the replica that has the node:
 *
 *     claimed (claims.ts) ──offer──▶ its request comes (receiving.ts) ──whole──▶ held (held.ts) ──▶ told to its owner, gone
 *                          the node came back with it: asked for (adoptions.ts) ──adopted──▲
 */
export interface Holding {
  readonly claims: Claims;
  readonly held: HeldJobs;
  readonly adoptions: Adoptions;
  /** @returns whether the message was for the holder of something */
  take(from: string, channel: Channel, message: PeerMessage): boolean;
  frame(from: string, frame: Frame): void;
  /** The channel is open anew: what was asked on the former one is asked again. */
  synced(owner: string, channel: Channel): void;
  broken(owner: string): void;
  /** That replica is no more. */
  died(owner: string): void;
}

export function createHolding(deps: {
  clock: Clock;
  memory: BodyMemory;
  dispatcher: Dispatcher;
  channelOf: (owner: string) => Channel | undefined;
}): Holding {
  const { clock, memory, dispatcher, channelOf } = deps;
  const tell = (owner: string, message: PeerMessage) => channelOf(owner)?.send(message);
  const claims = createClaims(clock, memory, free);
  const held = createHeldJobs({ clock, memory, dispatcher, channelOf, tell });
  const adoptions = createAdoptions({ clock, dispatcher, held });
  const receiving = createReceiving({
    tell,
    free,
    whole(owner, offer, { spot }, body) {
      withdrawPromise(spot.node.ledger, spot.slots);
      held.begin(owner, channelOf(owner)!, offer, spot, body);
    },
  });

  return {
    claims,
    held,
    adoptions,
    take,
    frame: (from, frame) => receiving.frame(from, frame),
    synced(owner, channel) {
      claims.synced(owner, channel);
      adoptions.synced(owner, channel);
    },
    broken(owner) {
      receiving.broken(owner);
      claims.broken(owner);
      held.broken(owner);
    },
    died: (owner) => held.died(owner),
  };

  function free({ spot, bytes }: Kept): void {
    memory.give(bytes);
    withdrawPromise(spot.node.ledger, spot.slots);
    dispatcher.pump(spot.node);
  }

  function take(from: string, channel: Channel, message: PeerMessage): boolean {
    switch (message.type) {
      case 'gone':
        claims.gone(from, message.job);
        return true;
      case 'offer':
        offered(from, channel, message);
        return true;
      case 'done':
        if (held.find(from, message) !== undefined) held.forget(from, message.job);
        return true;
      case 'stop': {
        const one = held.find(from, message);
        if (one !== undefined) held.stop(one, message.reason);
        else receiving.refuse(from, message);
        return true;
      }
      case 'credit':
        held.credit(from, message.stream, message.acked_offset);
        return true;
      case 'verdicts':
        for (const verdict of message.verdicts) held.verdict(from, channel, verdict);
        return true;
      case 'adopted':
        adoptions.adopted(from, channel, message);
        return true;
      default:
        return false;
    }
  }

  function offered(owner: string, channel: Channel, { type: _type, ...offer }: PeerMessageOf<'offer'>): void {
    const kept = claims.granted(owner, offer.job);
    if (kept !== undefined) {
      // Under the model's name at this place it may have another length than was told.
      memory.give(kept.bytes);
      memory.take(offer.body_length);
      return receiving.begin(owner, offer, { spot: kept.spot, bytes: offer.body_length });
    }
    const { job, attempt } = offer;
    channel.send({ type: 'rejected', job, attempt, reason: 'its slot was given up' });
  }
}
