import { type Clock, OutStream, newJob } from '@flotilla/core';
import { FRAME_KIND } from '@flotilla/protocol';
import type { BodyMemory } from '../body-memory.ts';
import type { ActiveJob, JobOwner, JobSink } from '../dispatch/active-job.ts';
import type { Dispatcher } from '../dispatch/dispatcher.ts';
import { type FleetNode, type ModelSpot, dropAttempt } from '../fleet/node.ts';
import type { Channel } from './channel.ts';
import type { HeldForPeer, PeerMessage, PeerMessageOf, PeerOffer } from './peer-messages.ts';

/**
 * Attempts at nodes linked here whose clients are at other replicas. In memory each is a job of one attempt, as detached
 * work is; what its rules say is told to its owner, who decides.
 *
 *     its request is whole, its node came back with it ──▶ held ──result, loss──▶ told, gone
 *                                                           ├── stop ──▶ cancelled, gone
 *                                                           └── channel broken for 6 s ──▲
 */
export interface HeldJobs {
  /** The node gets it, with its whole request, whose bytes are in the budget already. */
  begin(owner: string, channel: Channel, offer: PeerOffer, spot: ModelSpot, body: Uint8Array): void;
  /** Holds it from where its rules stand; its answer is passed on from this byte. */
  hold(owner: string, offer: PeerOffer, body: Uint8Array, kernel: ActiveJob['kernel'], from: number): Held;
  find(owner: string, of: { job: string; attempt: number }): Held | undefined;
  stop(one: Held, reason: string): void;
  /** The owner has its result. */
  forget(owner: string, job: string): void;
  /** The owner's client has the answer up to here. */
  credit(owner: string, stream: number, acked_offset: number): void;
  verdict(owner: string, channel: Channel, verdict: PeerMessageOf<'verdicts'>['verdicts'][number]): void;
  holds(owner: string): HeldForPeer[];
  letGo(node: FleetNode, channelTo: (owner: string) => Channel): void;
  broken(owner: string): void;
  died(owner: string): void;
}

interface Held {
  readonly owner: string;
  readonly job: ActiveJob;
  readonly number: number;
  stream: number;
  readonly out: OutStream;
  ended: boolean;
  /** Without a channel since then, the last time that it was. */
  broken_ms: number;
}

/** Node and owner give up attached work of a link that is away at this time. */
const DROP_AFTER_MS = 6000;
/** Its owner counts, and holds the time; here it is one attempt. */
export const HELD_POLICY: ActiveJob['kernel']['policy'] = {
  attached: true,
  on_node_loss: 'requeue',
  max_attempts: Number.POSITIVE_INFINITY,
  queue_timeout_ms: Number.POSITIVE_INFINITY,
  run_timeout_ms: null,
};

export function createHeldJobs(deps: {
  clock: Clock;
  memory: BodyMemory;
  dispatcher: Dispatcher;
  channelOf: (owner: string) => Channel | undefined;
  tell: (owner: string, message: PeerMessage) => void;
}): HeldJobs {
  const { clock, dispatcher, tell } = deps;
  const held = new Map<string, Map<string, Held>>();
  /** The same by owner and stream: a credit names nothing else, and there is one for each piece of an answer. */
  const streams = new Map<string, Map<number, Held>>();
  return { begin, hold, find, stop, forget, credit, verdict, holds, letGo, broken, died };

  function begin(owner: string, channel: Channel, offer: PeerOffer, spot: ModelSpot, body: Uint8Array): void {
    const { node } = spot;
    const of = { job: offer.job, attempt: offer.attempt };
    if (node.link?.open !== true || node.state !== 'online') {
      deps.memory.give(body.byteLength);
      return channel.send({ type: 'rejected', ...of, reason: 'its node went away' });
    }
    const kernel = { ...newJob(HELD_POLICY, clock.now_ms()), attempt: offer.attempt - 1 };
    const one = hold(owner, offer, body, kernel, 0);
    channel.attach(offer.stream, one.out, { acked_offset: 0, head_received: false });
    channel.send({ type: 'accepted', ...of });
    dispatcher.grants.offer(one.job, spot);
  }

  function hold(
    owner: string,
    offer: PeerOffer,
    body: Uint8Array,
    kernel: ActiveJob['kernel'],
    from: number,
  ): Held {
    const out = new OutStream({ kind: FRAME_KIND.responseBody, from });
    const job = activeJob(owner, offer, body, kernel);
    const one: Held = {
      owner,
      job,
      number: offer.attempt,
      stream: 0,
      out,
      ended: false,
      broken_ms: 0,
    };
    const of_owner = held.get(owner) ?? new Map<string, Held>();
    held.set(owner, of_owner.set(job.id, one));
    putOn(offer.stream, one);
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

  function find(owner: string, of: { job: string; attempt: number }): Held | undefined {
    const one = held.get(owner)?.get(of.job);
    return one?.number === of.attempt ? one : undefined;
  }

  /** @param stream 0: none */
  function putOn(stream: number, one: Held): void {
    const of_owner = streams.get(one.owner) ?? new Map<number, Held>();
    streams.set(one.owner, of_owner);
    if (of_owner.get(one.stream) === one) of_owner.delete(one.stream);
    one.stream = stream;
    if (stream !== 0) of_owner.set(stream, one);
  }

  function forget(owner: string, job: string): void {
    const one = held.get(owner)?.get(job);
    if (one === undefined) return;
    deps.channelOf(owner)?.detach(one.stream);
    putOn(0, one);
    held.get(owner)!.delete(job);
    deps.memory.give(one.job.request.body.byteLength);
  }

  function stop(one: Held, reason: string): void {
    forget(one.owner, one.job.id);
    dispatcher.cancel(one.job, reason);
  }

  function credit(owner: string, stream: number, acked_offset: number): void {
    const one = streams.get(owner)?.get(stream);
    const attempt = one?.job.current ?? null;
    if (one === undefined || attempt === null) return;
    // What its client has, no other attempt can repeat.
    if (acked_offset > 0) dispatcher.handed(one.job);
    dispatcher.credit(attempt, acked_offset);
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
    const broken_ms = clock.now_ms();
    for (const one of held.get(owner)?.values() ?? []) {
      putOn(0, one);
      one.broken_ms = broken_ms;
    }
    if ((held.get(owner)?.size ?? 0) === 0) return;
    clock.after(DROP_AFTER_MS, () => {
      for (const one of [...(held.get(owner)?.values() ?? [])]) {
        if (one.stream === 0 && one.broken_ms === broken_ms) stop(one, 'Its client’s replica is gone.');
      }
    });
  }

  function verdict(
    owner: string,
    channel: Channel,
    said: PeerMessageOf<'verdicts'>['verdicts'][number],
  ): void {
    const one = find(owner, said);
    if (one === undefined) return;
    putOn(said.stream, one);
    const kept = said.keep && channel.attach(said.stream, one.out, said);
    if (!kept) stop(one, 'Its owner has given it up.');
  }

  function letGo(node: FleetNode, channelTo: (owner: string) => Channel): void {
    for (const attempt of [...node.attempts.values()]) {
      const { owner } = attempt.job.request;
      if (owner === undefined || held.get(owner)?.get(attempt.job.id)?.job !== attempt.job) continue;
      dropAttempt(node, attempt);
      forget(owner, attempt.job.id);
      channelTo(owner).send({ type: 'moved', job: attempt.job.id, attempt: attempt.number });
    }
  }

  function died(owner: string): void {
    for (const one of [...(held.get(owner)?.values() ?? [])]) stop(one, 'Its client’s replica is no more.');
    held.delete(owner);
    streams.delete(owner);
  }
}
