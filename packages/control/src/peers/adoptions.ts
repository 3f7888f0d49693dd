import { type Clock, grantedJob } from '@flotilla/core';
import type { InventoryItem, Verdict } from '@flotilla/protocol';
import { fenceOf } from '../dispatch/attempt.ts';
import type { Dispatcher } from '../dispatch/dispatcher.ts';
import type { Link } from '../fleet/link.ts';
import type { FleetNode } from '../fleet/node.ts';
import type { Channel } from './channel.ts';
import { HELD_POLICY, type HeldJobs } from './held.ts';
import type { PeerMessageOf, PeerOffer } from './peer-messages.ts';

/**
 * What nodes came back to this replica with, whose clients are at others: the owner of each is asked.
 *
 *     asked ──adopted──▶ held, or abandoned      asked again with each new session of the channel
 *       └── not answered for 5 s ──▶ abandoned
 */
export interface Adoptions {
  ask(owner: string, channel: Channel, node: FleetNode, link: Link, items: readonly InventoryItem[]): void;
  adopted(owner: string, channel: Channel, message: PeerMessageOf<'adopted'>): void;
  /** Nobody is there who could say whose these are. */
  abandon(node: FleetNode, link: Link, items: readonly InventoryItem[]): void;
  /** The channel is open anew: what was asked on the former one is asked again. */
  synced(owner: string, channel: Channel): void;
}

interface Asked {
  node: FleetNode;
  link: Link;
  items: InventoryItem[];
}

const ADOPT_WITHIN_MS = 5000;
const EMPTY = new Uint8Array(0);

export function createAdoptions(deps: {
  clock: Clock;
  dispatcher: Dispatcher;
  held: Pick<HeldJobs, 'hold'>;
}): Adoptions {
  const { clock, dispatcher } = deps;
  const asked = new Map<string, Asked[]>();
  return {
    ask,
    adopted,
    abandon,
    synced(owner, channel) {
      for (const one of asked.get(owner) ?? []) sayAsked(channel, one);
    },
  };

  function ask(
    owner: string,
    channel: Channel,
    node: FleetNode,
    link: Link,
    items: readonly InventoryItem[],
  ): void {
    const asking = (asked.get(owner) ?? [])
      .filter((other) => other.link === link)
      .flatMap((other) => other.items);
    const fresh = items.filter((item) => !asking.some((known) => isSame(known, item)));
    // What never had its whole request cannot go on here: the rest of it is with its former replica.
    const torn = fresh.filter(({ state }) => state === 'receiving');
    for (const { job, attempt } of torn) {
      channel.send({ type: 'lost', job, attempt, message: 'Its request had not arrived whole.' });
    }
    // After the node has been told that it is let in.
    if (torn.length > 0) clock.after(0, () => abandon(node, link, torn));
    const one: Asked = { node, link, items: fresh.filter((item) => !torn.includes(item)) };
    if (one.items.length === 0) return;
    asked.set(owner, [...(asked.get(owner) ?? []), one]);
    sayAsked(channel, one);
    clock.after(ADOPT_WITHIN_MS, () => {
      const { items: left } = one;
      done(owner, one);
      abandon(node, link, left);
    });
  }

  function abandon(node: FleetNode, link: Link, items: readonly InventoryItem[]): void {
    const verdicts = items.map(({ job, attempt }): Verdict => ({ job, attempt, verdict: 'abandon' }));
    if (verdicts.length > 0 && node.link === link) link.send({ type: 'inventory.verdicts', verdicts });
  }

  function sayAsked(channel: Channel, { node, link, items }: Asked): void {
    const named = items.map(({ job, attempt }) => ({ job, attempt }));
    channel.send({ type: 'adopt', node: node.id, epoch: link.epoch, items: named });
  }

  function done(owner: string, one: Asked): void {
    one.items = [];
    const left = (asked.get(owner) ?? []).filter((other) => other !== one);
    if (left.length > 0) asked.set(owner, left);
    else asked.delete(owner);
  }

  function adopted(owner: string, channel: Channel, message: PeerMessageOf<'adopted'>): void {
    const one = (asked.get(owner) ?? []).find(
      ({ node, link }) => node.id === message.node && node.link === link,
    );
    if (one === undefined) {
      // Too late: the node has been told to let go, or is linked elsewhere.
      for (const { offer } of message.kept) {
        const of = { job: offer.job, attempt: offer.attempt };
        channel.send({ type: 'lost', ...of, message: 'Its node does not wait for it any more.' });
      }
      return;
    }
    const verdicts: Verdict[] = message.abandoned.map((of) => ({ ...of, verdict: 'abandon' }));
    for (const kept of message.kept) verdicts.push(takeUp(owner, channel, one, kept));
    done(owner, one);
    one.link.send({ type: 'inventory.verdicts', verdicts });
  }

  /** The attempt goes on from what its owner has of it. */
  function takeUp(
    owner: string,
    channel: Channel,
    { node, link, items }: Asked,
    {
      offer,
      acked_offset,
      head_received,
    }: { offer: PeerOffer; acked_offset: number; head_received: boolean },
  ): Verdict {
    const of = { job: offer.job, attempt: offer.attempt };
    const item = items.find((one) => isSame(one, of));
    const spot = node.spots.find(({ backend, model }) => backend === offer.backend && model === offer.model);
    if (item === undefined || spot === undefined) {
      channel.send({ type: 'lost', ...of, message: 'Its node does not have it any more.' });
      return { ...of, verdict: 'abandon' };
    }
    const granted = { attempt: offer.attempt, node: node.id, epoch: link.epoch, failures: 0, running: true };
    const kernel = grantedJob(HELD_POLICY, granted, clock.now_ms());
    const { job, out } = deps.held.hold(owner, offer, EMPTY, kernel, acked_offset);
    const attempt = dispatcher.grants.adopt(job, spot);
    Object.assign(attempt, { link, received: acked_offset, credited: acked_offset, head: head_received });
    const stream = link.resume(attempt, { ...item, state: 'running' });
    channel.attach(offer.stream, out, { acked_offset, head_received });
    dispatcher.grants.step(job, { type: 'handed', fence: fenceOf(attempt) });
    return stream === undefined
      ? { ...of, verdict: 'abandon' }
      : { ...of, verdict: 'keep', stream, acked_offset, head_received };
  }
}

function isSame(a: { job: string; attempt: number }, b: { job: string; attempt: number }): boolean {
  return a.job === b.job && a.attempt === b.attempt;
}
