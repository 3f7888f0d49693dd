import { ATTACHED_MOVE_MS, type Clock, OutStream, STREAM_WAIT_MS, refence, slotKey } from '@flotilla/core';
import { type ControlMessage, FRAME_KIND, type Frame } from '@flotilla/protocol';
import { type Attempt, fenceOf } from '../dispatch/attempt.ts';
import type { Dispatcher } from '../dispatch/dispatcher.ts';
import { takeAttemptMessage, takeFrame } from '../dispatch/node-messages.ts';
import type { Link } from '../fleet/link.ts';
import type { FleetNode, ModelSpot } from '../fleet/node.ts';
import type { Roster } from '../fleet/roster.ts';
import type { Channel } from './channel.ts';
import type { HeldForPeer, PeerMessage, PeerMessageOf, PeerOffer } from './peer-messages.ts';

/**
 * Attempts of this replica's clients at nodes that are linked to other replicas. To the dispatcher the way there is a
 * link like any other (`remoteLink`); what the holder says of an attempt is what its node would have said.
 *
 *     claimed by the holder ──given──▶ on its way there ──result, release──▶ over
 *          (channel broken, node moved) ▲  │ ▼
 *                                     waiting ──2 s unless it has sent something, 5 s──▶ lost
 */
export interface Owned {
  /** @returns whether the message was for the owner of something */
  take(from: string, channel: Channel, message: PeerMessage): boolean;
  frame(from: string, frame: Frame): void;
  synced(from: string, channel: Channel, holds: readonly HeldForPeer[]): void;
  broken(from: string): void;
}

export function createOwned(deps: { clock: Clock; dispatcher: Dispatcher; roster: Roster }): Owned {
  const { clock, dispatcher, roster } = deps;
  /** By replica, and by stream on the channel to it. */
  const under_way = new Map<string, Map<number, Attempt>>();
  /** Since when an attempt has waited, the last time that it did. */
  const waiting_since = new WeakMap<Attempt, number>();
  return { take, frame, synced, broken };

  function take(from: string, channel: Channel, message: PeerMessage): boolean {
    switch (message.type) {
      case 'claim':
        give(from, channel, message);
        return true;
      case 'adopt':
        adopt(from, channel, message);
        return true;
      case 'accepted':
      case 'started':
        said(from, { ...message, type: `job.${message.type}` });
        return true;
      case 'completed': {
        const { status, length, ...rest } = message;
        said(from, { ...rest, type: 'job.completed', result: { status, length }, total_ms: 0 });
        channel.send({ type: 'done', job: message.job, attempt: message.attempt });
        return true;
      }
      case 'failed':
        said(from, { ...message, type: 'job.failed' });
        return true;
      case 'rejected':
        said(from, { ...message, type: 'job.rejected' });
        return true;
      case 'lost': {
        const attempt = attemptOf(from, message);
        if (attempt !== undefined) lose(attempt, message.message);
        return true;
      }
      case 'moved': {
        const attempt = attemptOf(from, message);
        if (attempt !== undefined) wait(from, attempt);
        return true;
      }
      default:
        return false;
    }
  }

  function frame(from: string, one: Frame): void {
    const attempt = under_way.get(from)?.get(one.stream);
    if (attempt !== undefined) takeFrame(dispatcher, attempt, one);
  }

  function said(from: string, message: Parameters<typeof takeAttemptMessage>[2]): void {
    const attempt = attemptOf(from, message);
    if (attempt !== undefined) takeAttemptMessage(dispatcher, attempt.node, message);
  }

  /** The attempt, while it is on its way by this replica. */
  function attemptOf(from: string, of: { job: string; attempt: number }): Attempt | undefined {
    for (const attempt of under_way.get(from)?.values() ?? []) {
      if (attempt.job.id === of.job && attempt.number === of.attempt) return attempt;
    }
    return undefined;
  }

  function give(
    from: string,
    channel: Channel,
    { job, node: id, epoch, backend, model }: PeerMessageOf<'claim'>,
  ): void {
    const node = roster.find(id);
    const spot = node?.spots.find((one) => one.backend === backend && one.model === model);
    const given =
      spot !== undefined &&
      spot.node.link === null &&
      dispatcher.give(job, spot, remoteLink(from, channel, spot, epoch));
    if (!given) channel.send({ type: 'gone', job });
  }

  function remoteLink(from: string, channel: Channel, spot: ModelSpot, epoch: number): Link {
    return {
      epoch,
      get open() {
        return channel.open;
      },
      fences: true,
      get heard() {
        return channel.heard;
      },
      rtt_ms: 0,
      send: (message) => tell(channel, spot.node, message),
      offer(attempt) {
        const stream = begin(from, channel, attempt);
        channel.send({ type: 'offer', ...offerOf(attempt, stream) });
        const body = new OutStream({ kind: FRAME_KIND.requestBody });
        body.push(attempt.body);
        body.end('complete');
        channel.attach(stream, body, { acked_offset: 0, head_received: true });
      },
      resume: () => undefined,
      closeStream: (attempt) => end(from, channel, attempt),
      credit: (stream, acked_offset) => channel.send({ type: 'credit', stream, acked_offset }),
      roundTrip: () => undefined,
      alive: () => Promise.resolve(channel.open),
      close: () => undefined,
    };
  }

  function begin(from: string, channel: Channel, attempt: Attempt): number {
    const stream = channel.newStream();
    attempt.stream = stream;
    const own = under_way.get(from) ?? new Map<number, Attempt>();
    under_way.set(from, own.set(stream, attempt));
    return stream;
  }

  function end(from: string, channel: Channel, attempt: Attempt): void {
    if (attempt.stream === 0) return;
    channel.detach(attempt.stream);
    under_way.get(from)?.delete(attempt.stream);
    attempt.stream = 0;
  }

  function tell(channel: Channel, node: FleetNode, message: ControlMessage): void {
    if (message.type !== 'job.cancel' && message.type !== 'job.abandon') return;
    const reason = message.type === 'job.abandon' ? (message.reason ?? '') : 'cancelled';
    channel.send({ type: 'stop', job: message.job, attempt: message.attempt, reason });
    const attempt = node.attempts.get(slotKey(message.job, message.attempt));
    // The slot is the holder's to free; nothing is waited for here. Later than what the rules are just carrying out.
    if (attempt !== undefined) queueMicrotask(() => dispatcher.settleSlot(attempt));
  }

  function lose(attempt: Attempt, message: string): void {
    dispatcher.feed(attempt, { type: 'node_lost', fence: fenceOf(attempt), retry_delay_ms: 0, message });
    dispatcher.settleSlot(attempt);
  }

  /** It may be taken up again, from here or elsewhere, for as long as a node whose link is away. */
  function wait(from: string, attempt: Attempt): void {
    under_way.get(from)?.delete(attempt.stream);
    attempt.stream = 0;
    const { link } = attempt;
    const since_ms = clock.now_ms();
    waiting_since.set(attempt, since_ms);
    const loseUnless = (kept: (handed: boolean) => boolean) => () => {
      const same = attempt.link === link && waiting_since.get(attempt) === since_ms;
      const waits = same && attempt.stream === 0 && attempt.phase !== 'over';
      if (waits && !kept(attempt.job.kernel.handed)) lose(attempt, 'The way to its node is gone.');
    };
    clock.after(
      ATTACHED_MOVE_MS,
      loseUnless((handed) => handed),
    );
    clock.after(
      STREAM_WAIT_MS,
      loseUnless(() => false),
    );
  }

  function broken(from: string): void {
    for (const attempt of [...(under_way.get(from)?.values() ?? [])]) wait(from, attempt);
    under_way.delete(from);
  }

  /** What the holder still has goes on from where it is; what it does not have is lost. */
  function synced(from: string, channel: Channel, holds: readonly HeldForPeer[]): void {
    const verdicts = holds.map((held) => {
      const attempt = current(held);
      // One that has come back to another replica since is not here any more, whatever is listed here.
      if (attempt === undefined || !held.started || held.epoch < attempt.epoch) {
        return {
          job: held.job,
          attempt: held.attempt,
          keep: false,
          stream: 0,
          acked_offset: 0,
          head_received: false,
        };
      }
      return { ...held, keep: true, ...takeUp(from, channel, attempt, held.epoch) };
    });
    if (verdicts.length > 0) channel.send({ type: 'verdicts', verdicts });
  }

  function adopt(from: string, channel: Channel, { node: id, epoch, items }: PeerMessageOf<'adopt'>): void {
    const kept: PeerMessageOf<'adopted'>['kept'] = [];
    const abandoned: { job: string; attempt: number }[] = [];
    for (const item of items) {
      const attempt = current({ ...item, node: id });
      if (attempt === undefined || epoch < attempt.epoch) {
        abandoned.push(item);
        continue;
      }
      const { stream, acked_offset, head_received } = takeUp(from, channel, attempt, epoch);
      kept.push({ offer: offerOf(attempt, stream), acked_offset, head_received });
    }
    channel.send({ type: 'adopted', node: id, kept, abandoned });
  }

  function current({
    job,
    attempt: number,
    node,
  }: {
    job: string;
    attempt: number;
    node: string;
  }): Attempt | undefined {
    const attempt = dispatcher.jobs.get(job)?.current ?? undefined;
    return attempt?.number === number && attempt.node.id === node && attempt.phase !== 'over'
      ? attempt
      : undefined;
  }

  function takeUp(
    from: string,
    channel: Channel,
    attempt: Attempt,
    epoch: number,
  ): { stream: number; acked_offset: number; head_received: boolean } {
    const { job, node, number, spot } = attempt;
    attempt.link?.closeStream(attempt);
    attempt.link = remoteLink(from, channel, spot, epoch);
    attempt.answer_timer?.cancel();
    attempt.epoch = epoch;
    attempt.ended = null;
    attempt.story.epoch = epoch;
    job.kernel = refence(job.kernel, number, node.id, epoch);
    node.attempts.set(slotKey(job.id, number), attempt);
    const stream = begin(from, channel, attempt);
    return { stream, acked_offset: attempt.credited, head_received: attempt.head };
  }
}

function offerOf(attempt: Attempt, stream: number): PeerOffer {
  const { job, number, node, spot, body } = attempt;
  const { request } = job;
  return {
    job: job.id,
    attempt: number,
    stream,
    node: node.id,
    backend: spot.backend,
    model: spot.model,
    operation: request.operation,
    streaming: request.streaming,
    add_usage: request.add_usage,
    body_length: body.byteLength,
    request_id: request.request_id,
    traceparent: request.traceparent,
    priority: request.priority,
    labels: { ...request.labels },
  };
}
