import {
  type Clock,
  Outbox,
  type Random,
  received,
  type ReceiveWindow,
  receiveWindow,
  type Timer,
  type Timings,
  timings,
} from '@flotilla/core';
import {
  type ControlMessage,
  type ControlMessageOf,
  decodeFrame,
  END_OUTCOME,
  FlotillaError,
  type Frame,
  FRAME_KIND,
  NODE_FEATURES,
  type NodeMessage,
  PROTOCOL_VERSION,
  readControlMessage,
} from '@flotilla/protocol';
import type { FromLink, LinkThreadData } from '../threads.ts';
import type { Attempts } from './attempts.ts';
import { Beats } from './beats.ts';
import { BodyCredit } from './body-credit.ts';
import type { Dial, LinkConnection } from './connection.ts';
import type { Guard } from './guard.ts';
import type { Ending } from './refusal.ts';
import type { Slots } from './slots.ts';

/**
 * One connection to the control plane, from dialling to its end.
 *
 *     dialling ──opened──▶ registering ──node.registered──▶ up ──▶ ended
 *         └────────────────────┴───────────────────────────────────▲
 *
 * Moved by the connection's events; ended by them alone, also where this side closes. It carries messages to what
 * outlives it (attempts, guard) and owns what does not: outbox, windows, beats.
 */
export interface SessionHost {
  readonly data: LinkThreadData;
  readonly clock: Clock;
  readonly random: Random;
  readonly lease_clock: () => number;
  readonly dial: Dial;
  readonly host_facts: () => Record<string, number>;
  readonly attempts: Attempts;
  readonly slots: Slots;
  readonly guard: Guard;
  readonly user_agent: string;
  readonly draining: boolean;
  /** As the last registration told them; before it, for the first interval assumed. */
  timings: Timings;
  /** Of the last link; undefined: there was none. */
  epoch: number | undefined;
  post(message: FromLink): void;
  up(): void;
  ended(session: Session, ending: Ending, up_ms: number | null): void;
}

export class Session {
  readonly #host: SessionHost;
  readonly #connection: LinkConnection;
  readonly #outbox: Outbox;
  readonly #beats: Beats;
  readonly #progress: Int32Array;
  readonly #body_credit = new BodyCredit();
  #received: ReceiveWindow = receiveWindow();
  #register_sent_ms = 0;
  #up_since: number | null = null;
  #rtt_ms: number | null = null;
  #patience: Timer | null = null;
  readonly #url: string;
  readonly #closed = Promise.withResolvers<void>();

  /** @param connect_timeout_ms how long the address may take to let it in */
  constructor(host: SessionHost, control_url: string, connect_timeout_ms: number) {
    this.#host = host;
    this.#url = control_url;
    const { credential, progress } = host.data;
    this.#progress = new Int32Array(progress);
    this.#connection = host.dial(
      {
        control_url,
        credential,
        connect_timeout_ms,
        user_agent: host.user_agent,
      },
      {
        opened: () => this.#register(),
        text: (text) => this.#text(text),
        frame: (bytes) => this.#frame(bytes),
        ended: (ending) => this.#ended(ending),
      },
    );
    this.#outbox = new Outbox(this.#connection, () => host.clock.now_ms());
    this.#beats = new Beats(host.clock, host.random, host.lease_clock, {
      beat: (seq) => this.#sendBeat(seq),
      dead: () => this.#connection.drop('No beat was acknowledged for twice the heartbeat interval.'),
    });
  }

  get up(): boolean {
    return this.#up_since !== null;
  }

  /** Something a beat carries has changed. */
  beatNow(): void {
    this.#beats.beatNow();
  }

  /** Closes the connection so that another one follows it. */
  renew(): void {
    this.#connection.close(1000, 'The credential was rotated.');
  }

  sendDescriptor(): void {
    if (!this.up) return;
    const { descriptor, descriptor_hash } = this.#host.data;
    this.#say({ type: 'descriptor.update', descriptor, descriptor_hash });
  }

  /** Something of the main thread's; lost where the link is not up. */
  tell(message: NodeMessage): void {
    if (this.up) this.#say(message);
  }

  /** Says goodbye where that is possible. @returns when the connection is gone */
  async leave(reason: string | null): Promise<void> {
    if (reason !== null && this.up) this.#say({ type: 'node.deregister', reason });
    this.#beats.stop();
    this.#connection.close(1000, 'stopping');
    await this.#closed.promise;
  }

  #register(): void {
    const { data, clock, lease_clock, guard, attempts, timings: t } = this.#host;
    // After a sleep the lease may be long over: then nothing of it is offered to be kept.
    guard.check();
    this.#register_sent_ms = lease_clock();
    this.#say({
      type: 'node.register',
      boot_id: data.boot_id,
      ...(this.#host.epoch !== undefined && { epoch: this.#host.epoch }),
      protocol: { min: PROTOCOL_VERSION, max: PROTOCOL_VERSION },
      features: Object.values(NODE_FEATURES),
      descriptor: data.descriptor,
      descriptor_hash: data.descriptor_hash,
      inventory: attempts.inventory(),
      backends: data.health,
      journal: attempts.journal_health,
    });
    const wait_ms = Math.max(data.connect_timeout_ms, t.socket_dead_ms);
    this.#patience = clock.after(wait_ms, () => this.#connection.drop('The registration was not answered.'));
  }

  #ended(ending: Ending): void {
    this.#patience?.cancel();
    this.#beats.stop();
    this.#outbox.close();
    const up_ms = this.#up_since === null ? null : this.#host.clock.now_ms() - this.#up_since;
    this.#up_since = null;
    this.#closed.resolve();
    this.#host.ended(this, ending, up_ms);
  }

  // ── What arrives ──

  #text(text: string): void {
    const read = readControlMessage(text);
    if (read.ok) this.#message(read.message);
    else this.#say(read.error);
  }

  #message(message: ControlMessage): void {
    const { attempts } = this.#host;
    if (message.type === 'error') {
      this.#connection.noteError(message.code, message.message);
      return;
    }
    if (message.type === 'node.registered') {
      this.#registered(message);
      return;
    }
    if (!this.up) {
      this.#refuse('invalid_request', `${message.type} came before node.registered.`);
      return;
    }
    switch (message.type) {
      case 'node.heartbeat.ack':
        this.#beatAcknowledged(message);
        return;
      case 'inventory.verdicts':
        attempts.applyVerdicts(message.verdicts);
        return;
      case 'job.offer':
        attempts.offered(message);
        return;
      case 'job.cancel':
      case 'job.abandon':
        attempts.cancelled(message.job, message.attempt);
        return;
      case 'result.ack':
        attempts.resultAcknowledged(message.job, message.attempt);
        return;
      case 'discovery.request': {
        const { type: _, ...request } = message;
        this.#host.post({ type: 'discovery_asked', request });
        return;
      }
      case 'discovery.ack':
        this.#host.post({ type: 'discovery_acknowledged', request: message.request });
        return;
      case 'stream.credit':
        this.#outbox.credit(message.stream, message.acked_offset);
        return;
      case 'link.ack':
        this.#outbox.linkAck(message.received, this.#host.timings.heartbeat_ms);
        return;
    }
  }

  #frame(bytes: Buffer): void {
    const next = received(this.#received, bytes.length);
    this.#received = next.window;
    if (next.ack !== undefined) this.#say({ type: 'link.ack', received: next.ack });
    let frame: Frame;
    try {
      frame = decodeFrame(bytes);
    } catch (error) {
      if (!(error instanceof FlotillaError)) throw error;
      this.#refuse(error.code, error.message);
      return;
    }
    const { attempts } = this.#host;
    const { stream, offset, payload } = frame;
    if (frame.kind === FRAME_KIND.requestBody) {
      const attempt = attempts.bodyFrame(stream, offset, payload);
      if (attempt === undefined) return;
      const acked_offset = this.#body_credit.taken(stream, attempt.body_received);
      if (acked_offset !== undefined) this.#say({ type: 'stream.credit', stream, acked_offset });
    } else if (frame.kind === FRAME_KIND.end) {
      this.#body_credit.forget(stream);
      attempts.bodyEnd(stream, offset, payload[0] === END_OUTCOME.complete);
    } else {
      this.#refuse('invalid_request', `Frames of kind ${frame.kind} go to the control plane.`);
    }
  }

  #registered(message: ControlMessageOf<'node.registered'>): void {
    if (this.up) return;
    const host = this.#host;
    const { heartbeat_ms, epoch, node_id, name } = message;
    this.#patience?.cancel();
    host.timings = timings(heartbeat_ms);
    host.epoch = epoch;
    this.#up_since = host.clock.now_ms();
    host.guard.linkUp();
    host.guard.renew(this.#register_sent_ms, host.timings, 'all');
    this.#beats.start(host.timings);
    host.attempts.joined(this.#outbox, message.verdicts);
    host.post({ type: 'connected', url: this.#url, epoch, node_id, name, heartbeat_ms });
    if (host.draining) this.beatNow();
    host.up();
  }

  #beatAcknowledged(ack: ControlMessageOf<'node.heartbeat.ack'>): void {
    const { guard, timings: t, attempts, clock } = this.#host;
    const beat = this.#beats.acknowledged(ack.seq);
    if (beat === undefined) {
      // It was answered for attached work alone, and counts for all now that the store is back.
      const sent_ms = this.#beats.acknowledgedAgain(ack.seq);
      if (sent_ms !== undefined) guard.renew(sent_ms, t, ack.renews ?? 'all');
      return;
    }
    this.#rtt_ms = beat.rtt_ms;
    guard.renew(beat.sent_ms, t, ack.renews ?? 'all');
    this.#outbox.roundTrip(beat.rtt_ms, t.heartbeat_ms);
    if (ack.want.includes('descriptor')) this.sendDescriptor();
    if (ack.want.includes('inventory')) {
      this.#say({ type: 'inventory.sync', inventory: attempts.inventory() });
    }
    for (const request of ack.discoveries) this.#host.post({ type: 'discovery_asked', request });
    this.#host.post({
      type: 'acked',
      at: clock.wall_ms(),
      rtt_ms: beat.rtt_ms,
      cordoned: ack.desired.cordoned,
      drain_ms: ack.desired.drain_ms ?? null,
      warnings: ack.warnings,
    });
  }

  // ── What is sent ──

  #say(message: NodeMessage): void {
    this.#outbox.sendText(JSON.stringify(message));
  }

  /** The link lives on after what cannot be read. */
  #refuse(code: string, message: string): void {
    this.#say({ type: 'error', code, message });
  }

  #sendBeat(seq: number): void {
    const { data, slots, attempts, guard, draining, host_facts } = this.#host;
    guard.check();
    this.#say({
      type: 'node.heartbeat',
      seq,
      descriptor_hash: data.descriptor_hash,
      pools: slots.load(),
      leases_digest: attempts.digest,
      backends: data.health,
      journal: attempts.journal_health,
      host: host_facts(),
      progress_seq: Atomics.load(this.#progress, 0) >>> 0,
      draining,
      ...(this.#rtt_ms === null ? {} : { rtt_ms: this.#rtt_ms }),
    });
  }
}
