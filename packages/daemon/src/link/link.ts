import {
  type Clock,
  Deadlines,
  dialPatience,
  linkStood,
  nextReconnect,
  passAddress,
  type Random,
  type Reconnect,
  RECONNECT_START,
  type Timer,
  type Timings,
  timings,
} from '@flotilla/core';
import type { FinalRefusal, FromLink, LinkThreadData, ToLink } from '../threads.ts';
import { Attempts } from './attempts.ts';
import { Backends } from './backends.ts';
import type { Dial } from './connection.ts';
import { Guard } from './guard.ts';
import type { Machine } from './machine.ts';
import { type Ending, judgeEnding } from './refusal.ts';
import { Reports } from './reports.ts';
import { Session, type SessionHost } from './session.ts';
import { Slots } from './slots.ts';

/**
 * The node's side of the link: one session after another, and what must outlive them.
 *
 *     waiting ──delay──▶ in a session ──ended──▶ waiting (not at all, while a round has addresses left)
 *        │                     ├─ closed for a new credential ─▶ in a session, at once
 *        │                     └─ revoked, superseded, no protocol in common ──▶ stopping ──`drain`, or 1 s──▶ stopped
 *        └── drained ──────────┴──────────────────────────────────────────────────────────────────────────────▲
 *
 * Moved by: the session's end, the reconnect rule's timer, `drain` from the main thread, which has `stopping` on disk
 * before it says so: until then nothing is let go, except by a main thread that hangs. Attempts, slots and the guard
 * of the lease live through all of it; a crash of the thread loses them, but for what the journal has, and the control
 * plane finds that out from the inventory of the thread that follows.
 */
export interface LinkOptions {
  data: LinkThreadData;
  machine: Machine;
  post: (message: FromLink) => void;
}

/** The main thread writes one small file meanwhile; one that does not must not keep work alive that nobody wants. */
const STOPPING_WRITTEN_MS = 1000;
/** H until the control plane has told it. */
const FIRST_HEARTBEAT_MS = 5000;

export class Link implements SessionHost {
  readonly data: LinkThreadData;
  readonly clock: Clock;
  readonly random: Random;
  readonly lease_clock: () => number;
  readonly dial: Dial;
  readonly host_facts: Machine['host_facts'];
  readonly slots: Slots;
  readonly attempts: Attempts;
  readonly guard: Guard;
  timings: Timings = timings(FIRST_HEARTBEAT_MS);
  epoch: number | undefined;
  readonly #post: (message: FromLink) => void;
  readonly #agent: Machine['agent'];
  readonly #deadlines: Deadlines;
  readonly #backends: Backends;
  readonly #reports: Reports;
  readonly #addresses: string[];
  /** Of several addresses the next is next. */
  #dials = 0;
  #reconnect: Reconnect = RECONNECT_START;
  #session: Session | null = null;
  #redial: Timer | null = null;
  #drain_timer: Timer | null = null;
  #drain_reason: string | null = null;
  #refused: { why: FinalRefusal; message: string } | null = null;
  /** The session is being closed only to be opened again with a new credential. */
  #renewing = false;
  #stopped = false;
  /** Attempts that the stop did not let end: whoever asked for a drain is told. */
  #cut = 0;

  constructor(options: LinkOptions) {
    const { data, machine, post } = options;
    const { clock, random, lease_clock, agent } = machine;
    // The journal's answers are the attempts' from here on, which let go of them one by one.
    this.data = { ...data, journal: [] };
    this.clock = clock;
    this.random = random;
    this.lease_clock = lease_clock;
    this.dial = machine.dial;
    this.host_facts = machine.host_facts;
    this.#post = post;
    this.#addresses = data.control_url.split(',');
    this.#agent = agent;
    this.#deadlines = new Deadlines(clock);
    this.slots = new Slots(data.descriptor.pools);
    this.#backends = new Backends(data.backends, this.user_agent);
    this.#reports = new Reports({
      clock,
      post,
      pools: () => this.slots.load(),
      attempts: () => this.attempts.load(),
    });
    this.attempts = new Attempts({
      agent,
      clock,
      deadlines: this.#deadlines,
      backends: this.#backends,
      slots: this.slots,
      changed: () => this.#workChanged(),
      ended: (attempt, done) => this.#reports.ended(attempt, done),
      dropped: (attempt) => this.#reports.dropped(attempt),
      journal: post,
      leased: () => this.guard.allowsDetached(),
      journalTurned: () => this.#session?.beatNow(),
    });
    this.attempts.noteDisk(data.journal_health);
    this.attempts.restore(data.journal);
    this.guard = new Guard(clock, lease_clock, {
      fence: () => this.#fence(),
      fenceDetached: () => this.#fence('detached'),
      dropAttached: () => this.#dropAttached(),
    });
  }

  get user_agent(): string {
    return `flotilla-daemon/${this.data.version}`;
  }

  get draining(): boolean {
    return this.#drain_reason !== null;
  }

  start(): void {
    const { length } = this.#addresses;
    const control_url = this.#addresses[this.#dials++ % length]!;
    const within_ms = dialPatience(this.#reconnect, length, this.data.connect_timeout_ms);
    this.#session = new Session(this, control_url, within_ms);
  }

  /** A message of the main thread. */
  hear(message: ToLink): void {
    if (this.#stopped) return;
    switch (message.type) {
      case 'descriptor':
        this.data.descriptor = message.descriptor;
        this.data.descriptor_hash = message.descriptor_hash;
        this.data.backends = message.backends;
        this.data.health = message.health;
        this.slots.resize(message.descriptor.pools);
        this.#backends.replace(message.backends);
        this.#reports.forgetServed();
        this.#session?.sendDescriptor();
        this.#session?.beatNow();
        this.#reports.loadChanged();
        return;
      case 'health':
        this.data.health = message.health;
        this.#session?.beatNow();
        return;
      case 'credential':
        this.data.credential = message.credential;
        if (this.#refused === null) this.#renew();
        return;
      case 'discovery':
        this.#session?.tell(message.message);
        return;
      case 'journal_health':
        this.attempts.noteDisk(message.health);
        return;
      case 'drain':
        this.#drain(message.deadline_ms, message.reason);
        return;
    }
  }

  #renew(): void {
    if (this.#session !== null) {
      this.#renewing = true;
      this.#session.renew();
      return;
    }
    this.#redial?.cancel();
    this.start();
  }

  // ── For the session ──

  post(message: FromLink): void {
    this.#post(message);
  }

  up(): void {
    this.#reports.loadChanged();
    this.#stopIfDrained();
  }

  ended(session: Session, ending: Ending, up_ms: number | null): void {
    if (session !== this.#session) return;
    this.#session = null;
    this.attempts.left();
    if (this.#stopped) return;
    if (this.#renewing) {
      // At once, whatever the old link still said: its work goes on with the new one.
      this.#renewing = false;
      if (up_ms !== null) this.guard.linkDown();
      this.start();
      return;
    }
    const refusal = judgeEnding(ending);
    if (refusal.next === 'stop') {
      this.#giveUp(refusal.why, refusal.message);
      return;
    }
    if (up_ms !== null) this.guard.linkDown();
    const delay_ms = this.#nextDial(refusal.next, up_ms);
    this.#redial = this.clock.after(delay_ms, () => this.start());
    this.#post({ type: 'disconnected', reason: refusal.message, retry_in_ms: Math.round(delay_ms) });
    this.#stopIfDrained();
  }

  #nextDial(next: 'again' | 'afresh' | 'slow', up_ms: number | null): number {
    const passed =
      up_ms === null && next !== 'slow' ? passAddress(this.#reconnect, this.#addresses.length) : undefined;
    if (passed !== undefined) {
      this.#reconnect = passed;
      return 0;
    }
    const lost = up_ms === null ? this.#reconnect : linkStood(this.#reconnect, up_ms);
    const from = next === 'afresh' ? RECONNECT_START : lost;
    const { state, delay_ms } = nextReconnect(from, this.random.next(), next === 'slow' ? 'slow' : 'normal');
    this.#reconnect = state;
    return delay_ms;
  }

  // ── Endings ──

  #workChanged(): void {
    this.#reports.loadChanged();
    // Not at once: whoever reports the change has still to say its own last word on the link.
    if (this.draining) this.clock.after(0, () => this.#stopIfDrained());
  }

  #releaseAll(): void {
    const { live } = this.attempts;
    this.attempts.releaseAll();
    if (this.draining) this.#cut += live - this.attempts.live;
  }

  #dropAttached(): void {
    const { live } = this.attempts;
    this.attempts.releaseAttached();
    if (this.draining) this.#cut += live - this.attempts.live;
  }

  #fence(which?: 'detached'): void {
    const { live } = this.attempts;
    const attempts = this.attempts.fence(which);
    if (this.draining) this.#cut += live - this.attempts.live;
    if (attempts > 0) this.#post({ type: 'fenced', attempts });
  }

  #giveUp(why: FinalRefusal, message: string): void {
    this.#refused = { why, message };
    this.#post({ type: 'stopping', why, message });
    // A drain says that `stopping` is on disk.
    if (this.draining) void this.#stop(why, message);
    else this.#drain_timer = this.clock.after(STOPPING_WRITTEN_MS, () => void this.#stop(why, message));
  }

  #drain(deadline_ms: number, reason: string): void {
    if (this.#refused !== null) {
      void this.#stop(this.#refused.why, this.#refused.message);
      return;
    }
    this.#drain_reason = reason;
    this.attempts.draining = true;
    this.#drain_timer?.cancel();
    this.#drain_timer = this.clock.after(deadline_ms, () => {
      this.#releaseAll();
      void this.#stop('drained', reason);
    });
    this.#session?.beatNow();
    this.#stopIfDrained();
  }

  #stopIfDrained(): void {
    if (this.#drain_reason === null || this.attempts.live > 0) return;
    // A link that is being made is given the chance to say goodbye on.
    if (this.#session !== null && !this.#session.up) return;
    void this.#stop('drained', this.#drain_reason);
  }

  async #stop(why: Extract<FromLink, { type: 'stopped' }>['why'], message: string): Promise<void> {
    if (this.#stopped) return;
    this.#stopped = true;
    this.#redial?.cancel();
    this.#drain_timer?.cancel();
    this.guard.stop();
    const left = this.#session?.leave(why === 'drained' ? message : null);
    this.attempts.left();
    const { live } = this.attempts;
    this.attempts.fence();
    // What is left has its result, which the next process of this node delivers.
    const kept = this.attempts.live;
    this.#cut += live - kept;
    this.attempts.stop();
    this.#deadlines.stop();
    this.#reports.stop();
    await Promise.allSettled([left, this.#agent.destroy()]);
    this.#post({ type: 'stopped', why, message, released: this.#cut, kept });
  }
}
