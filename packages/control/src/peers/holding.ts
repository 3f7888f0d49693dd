import {
  type Clock,
  OutStream,
  type Timer,
  grantedJob,
  newJob,
  promise,
  withdrawPromise,
} from '@flotilla/core';
import { FRAME_KIND, type Frame, type InventoryItem, type Verdict } from '@flotilla/protocol';
import type { ActiveJob, JobOwner, JobSink } from '../dispatch/active-job.ts';
import { fenceOf } from '../dispatch/attempt.ts';
import type { Dispatcher } from '../dispatch/dispatcher.ts';
import type { Link } from '../fleet/link.ts';
import { type FleetNode, type ModelSpot, dropAttempt } from '../fleet/node.ts';
import type { Channel } from './channel.ts';
import type { HeldForPeer, PeerMessage, PeerMessageOf, PeerOffer } from './peer-messages.ts';

/**
 * Attempts at nodes linked here whose clients are at other replicas. In memory each is a job of one attempt, as detached
 * work is; what its rules say is told to its owner, who decides.
 *
 *     slot kept ──claim──▶ claimed ──offer──▶ receiving its request ──whole──▶ held ──result, loss──▶ told, gone
 *        └── gone, 1 s ──▶ slot free       (its node came back with it) ──adopt──▶ held ──stop──▶ cancelled, gone
 *                                                                              └── channel broken for 6 s ──▲
 */
export interface Holding {
  /** Keeps the slot, and asks the owner for the job. */
  claim(owner: string, channel: Channel, job: string, spot: ModelSpot): void;
  claims(job: string): boolean;
  /** @returns whether the message was for the holder of something */
  take(from: string, channel: Channel, message: PeerMessage): boolean;
  frame(from: string, frame: Frame): void;
  /** What is held for this replica. */
  holds(owner: string): HeldForPeer[];
  /** The channel is open anew: what was asked on the former one is asked again. */
  synced(owner: string, channel: Channel): void;
  broken(owner: string): void;
  /** That replica is no more. */
  died(owner: string): void;
  /** Nobody is there who could say whose these are. */
  abandon(node: FleetNode, link: Link, items: readonly InventoryItem[]): void;
  letGo(node: FleetNode, channelOf: (owner: string) => Channel): void;
  ask(owner: string, channel: Channel, node: FleetNode, link: Link, items: readonly InventoryItem[]): void;
}

interface Claim {
  owner: string;
  spot: ModelSpot;
  timer: Timer;
}

interface Receiving {
  offer: PeerOffer;
  spot: ModelSpot;
  parts: Uint8Array[];
  length: number;
  credited: number;
}

interface Held {
  owner: string;
  job: ActiveJob;
  number: number;
  stream: number;
  out: OutStream;
  ended: boolean;
  /** Without a channel since then, the last time that it was. */
  broken_ms: number;
}

interface Asked {
  node: FleetNode;
  link: Link;
  items: InventoryItem[];
}

const CREDIT_EVERY_BYTES = 64 * 1024;
const CLAIM_WITHIN_MS = 1000;
/** Node and owner give up attached work of a link that is away at this time. */
const DROP_AFTER_MS = 6000;
const ADOPT_WITHIN_MS = 5000;

export function createHolding(deps: {
  clock: Clock;
  dispatcher: Dispatcher;
  /** A claim was not granted: its slot is free again. */
  freed(node: FleetNode): void;
}): Holding {
  const { clock, dispatcher } = deps;
  const claims = new Map<string, Claim>();
  const receiving = new Map<string, Map<number, Receiving>>();
  const held = new Map<string, Map<string, Held>>();
  const asked = new Map<string, Asked[]>();
  const channels = new Map<string, Channel>();

  return {
    claim,
    claims: (job) => claims.has(job),
    take,
    frame,
    holds,
    synced,
    broken,
    died,
    abandon,
    letGo,
    ask,
  };

  function claim(owner: string, channel: Channel, job: string, spot: ModelSpot): void {
    promise(spot.node.ledger, spot.slots);
    const timer = clock.after(CLAIM_WITHIN_MS, () => giveUp(job));
    claims.set(job, { owner, spot, timer });
    sayClaim(channel, job, spot);
  }

  function sayClaim(channel: Channel, job: string, { node, backend, model }: ModelSpot): void {
    channel.send({ type: 'claim', job, node: node.id, epoch: node.epoch, backend, model });
  }

  function giveUp(job: string): void {
    const one = claims.get(job);
    if (one === undefined) return;
    one.timer.cancel();
    claims.delete(job);
    free(one.spot);
  }

  function free(spot: ModelSpot): void {
    withdrawPromise(spot.node.ledger, spot.slots);
    deps.freed(spot.node);
  }

  function take(from: string, channel: Channel, message: PeerMessage): boolean {
    switch (message.type) {
      case 'gone':
        if (claims.get(message.job)?.owner === from) giveUp(message.job);
        return true;
      case 'offer':
        onOffer(from, channel, message);
        return true;
      case 'done':
        if (find(from, message) !== undefined) forget(from, message.job);
        return true;
      case 'stop': {
        const one = find(from, message);
        if (one !== undefined) stop(one, message.reason);
        else refuse(from, message);
        return true;
      }
      case 'credit': {
        const one = byStream(from, message.stream);
        const attempt = one?.job.current ?? null;
        if (one !== undefined && attempt !== null) {
          // What its client has, no other attempt can repeat.
          if (message.acked_offset > 0) dispatcher.handed(one.job);
          dispatcher.credit(attempt, message.acked_offset);
        }
        return true;
      }
      case 'verdicts':
        for (const verdict of message.verdicts) onVerdict(from, channel, verdict);
        return true;
      case 'adopted':
        onAdopted(from, channel, message);
        return true;
      default:
        return false;
    }
  }

  function onOffer(from: string, channel: Channel, { type: _type, ...offer }: PeerMessageOf<'offer'>): void {
    const one = claims.get(offer.job);
    if (one === undefined || one.owner !== from) {
      channel.send({
        type: 'rejected',
        job: offer.job,
        attempt: offer.attempt,
        reason: 'its slot was given up',
      });
      return;
    }
    one.timer.cancel();
    claims.delete(offer.job);
    const of_owner = receiving.get(from) ?? new Map<number, Receiving>();
    channels.set(from, channel);
    receiving.set(
      from,
      of_owner.set(offer.stream, { offer, spot: one.spot, parts: [], length: 0, credited: 0 }),
    );
  }

  /** Its request is still coming: it is not wanted any more. */
  function refuse(from: string, of: { job: string; attempt: number }): void {
    for (const [stream, { offer, spot }] of receiving.get(from) ?? []) {
      if (offer.job !== of.job || offer.attempt !== of.attempt) continue;
      receiving.get(from)!.delete(stream);
      free(spot);
    }
  }

  function frame(from: string, { kind, stream, offset, payload }: Frame): void {
    const one = receiving.get(from)?.get(stream);
    if (one === undefined) return;
    const { offer } = one;
    if (offset + payload.byteLength > offer.body_length && kind === FRAME_KIND.requestBody) {
      refuse(from, offer);
      tell(from, {
        type: 'lost',
        job: offer.job,
        attempt: offer.attempt,
        message: 'Its request is longer than was said.',
      });
      return;
    }
    if (kind === FRAME_KIND.requestBody && offset === one.length) {
      one.parts.push(payload);
      one.length += payload.byteLength;
      if (one.length - one.credited >= CREDIT_EVERY_BYTES) {
        one.credited = one.length;
        tell(from, { type: 'credit', stream, acked_offset: one.length });
      }
    }
    if (kind === FRAME_KIND.end && one.length === one.offer.body_length) {
      receiving.get(from)!.delete(stream);
      begin(from, one);
    }
  }

  function begin(owner: string, { offer, spot, parts }: Receiving): void {
    const channel = channels.get(owner)!;
    const { node } = spot;
    withdrawPromise(node.ledger, spot.slots);
    const of = { job: offer.job, attempt: offer.attempt };
    if (node.link?.open !== true || node.state !== 'online') {
      channel.send({ type: 'rejected', ...of, reason: 'its node went away' });
      return;
    }
    const kernel = { ...newJob(POLICY, clock.now_ms()), attempt: offer.attempt - 1 };
    const body = parts.length === 1 ? parts[0]! : Buffer.concat(parts);
    const one = hold(owner, channel, offer, body, kernel, 0);
    channel.attach(offer.stream, one.out, { acked_offset: 0, head_received: false });
    channel.send({ type: 'accepted', ...of });
    dispatcher.grants.offer(one.job, spot);
  }

  function hold(
    owner: string,
    channel: Channel,
    offer: PeerOffer,
    body: Uint8Array,
    kernel: ActiveJob['kernel'],
    from: number,
  ): Held {
    channels.set(owner, channel);
    const out = new OutStream({ kind: FRAME_KIND.responseBody, from });
    const job = activeJob(owner, offer, body, kernel);
    const one: Held = {
      owner,
      job,
      number: offer.attempt,
      stream: offer.stream,
      out,
      ended: false,
      broken_ms: 0,
    };
    const of_owner = held.get(owner) ?? new Map<string, Held>();
    held.set(owner, of_owner.set(job.id, one));
    return one;
  }

  function activeJob(
    owner: string,
    offer: PeerOffer,
    body: Uint8Array,
    kernel: ActiveJob['kernel'],
  ): ActiveJob {
    const { job: id, model, operation, labels, priority } = offer;
    return {
      id,
      capability: model,
      lane: operation,
      order_key: 0,
      request: {
        id,
        request_id: offer.request_id,
        owner,
        key: '',
        model,
        operation,
        body,
        streaming: offer.streaming,
        add_usage: offer.add_usage,
        labels,
        session: null,
        affinity: null,
        priority,
        traceparent: offer.traceparent,
        via: [],
      },
      sink: sinkOf(owner, id),
      owner: ownerOf(owner),
      kernel,
      placement: {
        model,
        operation,
        labels,
        pin: null,
        avoid: new Set(),
        refused_by: new Set(),
        affinity: null,
      },
      current: null,
      last: null,
      stories: [],
      created_at: clock.wall_ms(),
      created_ms: clock.now_ms(),
      offered_ms: null,
      queued: false,
      deadline_timer: null,
      record_timer: null,
      retry_timer: null,
      recorded: true,
    };
  }

  /** What the node sends goes on to the owner. */
  function sinkOf(owner: string, id: string): JobSink {
    const out = () => held.get(owner)?.get(id)?.out;
    return {
      started: (attempt) => tell(owner, { type: 'started', job: id, attempt: attempt.number }),
      head: (_attempt, status, headers) => out()?.head(Buffer.from(JSON.stringify({ status, headers }))),
      body: (_attempt, bytes) => void out()?.push(bytes),
      discard() {},
      fault: () => null,
      finished() {},
    };
  }

  function ownerOf(owner: string): JobOwner {
    return {
      requeue(job) {
        const { story, number } = job.last!;
        const of = { job: job.id, attempt: number };
        const { outcome, message } = story;
        forget(owner, job.id);
        if (outcome === 'rejected')
          tell(owner, { type: 'rejected', ...of, reason: message ?? 'it was refused' });
        else if (outcome === 'node_lost' || outcome === 'withdrawn') {
          tell(owner, { type: 'lost', ...of, message: message ?? 'The node was lost.' });
        } else failed(owner, job, outcome, message, true);
      },
      finish(job, { state, code, message, result }) {
        const one = held.get(owner)?.get(job.id);
        if (one === undefined) return;
        const of = { job: job.id, attempt: one.number };
        if (state === 'succeeded' && result !== null) {
          const { status, length, usage } = result;
          one.ended = true;
          one.out.end('complete', () => {
            // Again after each new session, until the owner has said that it has it.
            if (held.get(owner)?.get(job.id) === one)
              tell(owner, { type: 'completed', ...of, status, length, usage });
          });
          return;
        }
        forget(owner, job.id);
        if (state === 'cancelled') return;
        if (code === 'node_lost')
          tell(owner, { type: 'lost', ...of, message: message ?? 'The node was lost.' });
        else failed(owner, job, code ?? 'backend_error', message, code === 'backend_error');
      },
      deadlineMoved() {},
      failedBy() {},
      told() {},
      acknowledge({ job, number, link }, outcome) {
        link?.send({ type: 'result.ack', job: job.id, attempt: number, outcome });
      },
    };
  }

  function failed(
    owner: string,
    job: ActiveJob,
    code: string,
    message: string | null,
    retryable: boolean,
  ): void {
    const wait_ms = Math.max(0, job.kernel.not_before_ms - clock.now_ms());
    tell(owner, {
      type: 'failed',
      job: job.id,
      attempt: job.last!.number,
      code,
      message: message ?? code,
      retryable,
      ...(wait_ms > 0 && { retry_after_ms: wait_ms }),
    });
  }

  function tell(owner: string, message: PeerMessage): void {
    channels.get(owner)?.send(message);
  }

  function find(owner: string, of: { job: string; attempt: number }): Held | undefined {
    const one = held.get(owner)?.get(of.job);
    return one?.number === of.attempt ? one : undefined;
  }

  function byStream(owner: string, stream: number): Held | undefined {
    for (const one of held.get(owner)?.values() ?? []) if (one.stream === stream) return one;
    return undefined;
  }

  function forget(owner: string, job: string): void {
    const one = held.get(owner)?.get(job);
    if (one === undefined) return;
    channels.get(owner)?.detach(one.stream);
    held.get(owner)!.delete(job);
  }

  function stop(one: Held, reason: string): void {
    forget(one.owner, one.job.id);
    dispatcher.cancel(one.job, reason);
  }

  // ── The channel was broken, or another node link is the way now ──

  function holds(owner: string): HeldForPeer[] {
    return [...(held.get(owner)?.values() ?? [])].flatMap(({ job, number, ended }) => {
      const attempt = job.current ?? (ended ? job.last : null);
      if (attempt === null) return [];
      const { id } = attempt.node;
      return [{ job: job.id, attempt: number, node: id, epoch: attempt.epoch, started: attempt.head }];
    });
  }

  function broken(owner: string): void {
    for (const { spot } of receiving.get(owner)?.values() ?? []) free(spot);
    receiving.delete(owner);
    for (const [job, one] of [...claims]) if (one.owner === owner) giveUp(job);
    const broken_ms = clock.now_ms();
    for (const one of held.get(owner)?.values() ?? []) Object.assign(one, { stream: 0, broken_ms });
    if ((held.get(owner)?.size ?? 0) === 0) return;
    clock.after(DROP_AFTER_MS, () => {
      for (const one of [...(held.get(owner)?.values() ?? [])]) {
        if (one.stream === 0 && one.broken_ms === broken_ms) stop(one, 'Its client’s replica is gone.');
      }
    });
  }

  function onVerdict(
    from: string,
    channel: Channel,
    verdict: PeerMessageOf<'verdicts'>['verdicts'][number],
  ): void {
    const one = find(from, verdict);
    if (one === undefined) return;
    one.stream = verdict.stream;
    const kept = verdict.keep && channel.attach(verdict.stream, one.out, verdict);
    if (!kept) stop(one, 'Its owner has given it up.');
  }

  function letGo(node: FleetNode, channelOf: (owner: string) => Channel): void {
    for (const attempt of [...node.attempts.values()]) {
      const { owner } = attempt.job.request;
      if (owner === undefined || held.get(owner)?.get(attempt.job.id)?.job !== attempt.job) continue;
      dropAttempt(node, attempt);
      forget(owner, attempt.job.id);
      channelOf(owner).send({ type: 'moved', job: attempt.job.id, attempt: attempt.number });
    }
  }

  function ask(
    owner: string,
    channel: Channel,
    node: FleetNode,
    link: Link,
    items: readonly InventoryItem[],
  ): void {
    channels.set(owner, channel);
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

  function synced(owner: string, channel: Channel): void {
    for (const [job, { owner: of, spot }] of claims) if (of === owner) sayClaim(channel, job, spot);
    for (const one of asked.get(owner) ?? []) sayAsked(channel, one);
  }

  function died(owner: string): void {
    for (const one of [...(held.get(owner)?.values() ?? [])]) stop(one, 'Its client’s replica is no more.');
    held.delete(owner);
    channels.delete(owner);
  }

  function done(owner: string, one: Asked): void {
    one.items = [];
    const left = (asked.get(owner) ?? []).filter((other) => other !== one);
    if (left.length > 0) asked.set(owner, left);
    else asked.delete(owner);
  }

  function onAdopted(from: string, channel: Channel, message: PeerMessageOf<'adopted'>): void {
    const one = (asked.get(from) ?? []).find(
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
    const { node, link, items } = one;
    const verdicts: Verdict[] = message.abandoned.map((of) => ({ ...of, verdict: 'abandon' }));
    for (const { offer, acked_offset, head_received } of message.kept) {
      const item = items.find(({ job, attempt }) => job === offer.job && attempt === offer.attempt);
      const spot = node.spots.find(
        ({ backend, model }) => backend === offer.backend && model === offer.model,
      );
      const of = { job: offer.job, attempt: offer.attempt };
      if (item === undefined || spot === undefined) {
        verdicts.push({ ...of, verdict: 'abandon' });
        channel.send({ type: 'lost', ...of, message: 'Its node does not have it any more.' });
        continue;
      }
      const granted = {
        attempt: offer.attempt,
        node: node.id,
        epoch: link.epoch,
        failures: 0,
        running: true,
      };
      const own = hold(
        from,
        channel,
        offer,
        EMPTY,
        grantedJob(POLICY, granted, clock.now_ms()),
        acked_offset,
      );
      const attempt = dispatcher.grants.adopt(own.job, spot);
      Object.assign(attempt, { link, received: acked_offset, credited: acked_offset, head: head_received });
      const stream = link.resume(attempt, { ...item, state: 'running' });
      channel.attach(offer.stream, own.out, { acked_offset, head_received });
      if (stream === undefined) verdicts.push({ ...of, verdict: 'abandon' });
      else verdicts.push({ ...of, verdict: 'keep', stream, acked_offset, head_received });
      dispatcher.grants.step(own.job, { type: 'handed', fence: fenceOf(attempt) });
    }
    done(from, one);
    link.send({ type: 'inventory.verdicts', verdicts });
  }
}

function isSame(a: { job: string; attempt: number }, b: { job: string; attempt: number }): boolean {
  return a.job === b.job && a.attempt === b.attempt;
}

const EMPTY = new Uint8Array(0);
/** Its owner counts, and holds the time; here it is one attempt. */
const POLICY: ActiveJob['kernel']['policy'] = {
  attached: true,
  on_node_loss: 'requeue',
  max_attempts: Number.POSITIVE_INFINITY,
  queue_timeout_ms: Number.POSITIVE_INFINITY,
  run_timeout_ms: null,
};
