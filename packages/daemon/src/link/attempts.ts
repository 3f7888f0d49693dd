import {
  ChurnMap,
  type Clock,
  type Deadlines,
  type HttpAgent,
  LeasesDigest,
  type Outbox,
  type RelayDone,
  type Timer,
} from '@flotilla/core';
import {
  type InventoryItem,
  type JournalHealth,
  type NodeMessage,
  STORE_OWNER,
  type Verdict,
} from '@flotilla/protocol';
import type { AttemptLoad, FromLink, JournalEntry } from '../threads.ts';
import { Attempt, type AttemptHost, type Offer } from './attempt.ts';
import type { Backends } from './backends.ts';
import { createJournaling, type Journaling } from './journaling.ts';
import type { Slots } from './slots.ts';

/**
 * Every attempt this node holds, until the control plane needs it no more: the inventory of a registration, the digest
 * of a beat, the answer to whatever arrives twice. An attempt enters with its offer and leaves with `result.ack`, with
 * `job.released` said on a link that stands, or at the fence, with everything else but detached results.
 *
 * A link comes (`joined`) and goes (`left`); attempts are on a stream of it from the verdict `keep`, or their offer, on.
 */
export interface AttemptsTools {
  agent: HttpAgent;
  clock: Clock;
  deadlines: Deadlines;
  backends: Backends;
  slots: Slots;
  /** An attempt entered, started or ended. */
  changed: () => void;
  ended: (attempt: Attempt, done: RelayDone) => void;
  /** Stopped without a result: cancelled, abandoned, fenced or without a link for too long. */
  dropped: (attempt: Attempt) => void;
  /** Tells the main thread, which writes it. */
  journal: (message: Extract<FromLink, { type: 'journal_keep' | 'journal_drop' }>) => void;
  /** Whether detached work may be begun: its lease is not over. What was begun under one that is over is stopped by that. */
  leased: () => boolean;
  /** `journal_health` is another one: the control plane is to know. */
  journalTurned: () => void;
}

/**
 * What is kept unacknowledged at once: its inventory has to fit into a registration beside the descriptor, and a
 * control plane that acknowledges nothing gets no more done.
 */
export const INVENTORY_MAX_BYTES = 152 * 1024;
/** An item without its names, with numbers of any length that occurs. */
const ITEM_BYTES = 128;
/**
 * Detached results that are kept at once, here and in the journal: where nobody acknowledges any, no more detached work
 * is taken on, until half of them are gone: else each one that is acknowledged would be told of, and the next one too.
 * What runs by then may still end and is kept beyond it.
 */
export const KEPT_RESULTS_MOST = 384;
const KEPT_RESULTS_MAX_BYTES = 256 * 1024 * 1024;
/** Bodies are held whole to be asked twice; the control plane's own limit is 16 MiB. */
const BODY_MAX_BYTES = 128 * 1024 * 1024;
/** How long after a `wait` the node asks again. */
const ASK_AGAIN_MS = 500;

export class Attempts {
  readonly #tools: AttemptsTools;
  readonly #host: AttemptHost;
  readonly #attempts = new ChurnMap<string, Attempt>();
  readonly #by_stream = new ChurnMap<number, Attempt>();
  readonly #digest = new LeasesDigest();
  readonly #journaling: Journaling;
  #inventory_bytes = 0;
  #outbox: Outbox | null = null;
  #unanswered: Attempt[] = [];
  #ask_again: Timer | null = null;
  /** Detached results that are kept, and the bytes of their answers. */
  #results = 0;
  #result_bytes = 0;
  #journal_full = false;
  draining = false;
  #disk: JournalHealth = { health: 'healthy' };

  constructor(tools: AttemptsTools) {
    this.#tools = tools;
    this.#journaling = createJournaling(tools.clock, tools.journal);
    this.#host = {
      agent: tools.agent,
      clock: tools.clock,
      deadlines: tools.deadlines,
      say: (message) => this.say(message),
      mention: (message) => this.#outbox?.sendPatiently(JSON.stringify(message)),
      idle: (attempt) => {
        if (attempt.backend !== null) tools.slots.release(attempt.backend.pool);
        tools.changed();
      },
      ended: tools.ended,
      finished: (attempt) => {
        if (!attempt.detached) return;
        this.#countResult(attempt, 1);
        this.#journaling.ended(attempt);
      },
    };
  }

  /** What an earlier process left. Before the first link. */
  restore(entries: readonly JournalEntry[]): void {
    for (const entry of entries) {
      const attempt = Attempt.restored(entry, this.#host);
      this.#enter(attempt);
      this.#journaling.restored(attempt);
      if (attempt.state === 'finished') this.#countResult(attempt, 1);
    }
  }

  #enter(attempt: Attempt): void {
    const { offer } = attempt;
    this.#attempts.set(keyOf(offer.job, offer.attempt), attempt);
    this.#digest.add(offer.job, offer.attempt);
    this.#inventory_bytes += itemBytes(offer);
  }

  #countResult({ out }: Attempt, by: 1 | -1): void {
    this.#results += by;
    this.#result_bytes += by * out.length;
    const most = this.#journal_full ? 0.5 : 1;
    const full =
      this.#results >= most * KEPT_RESULTS_MOST || this.#result_bytes >= most * KEPT_RESULTS_MAX_BYTES;
    if (full === this.#journal_full) return;
    this.#journal_full = full;
    this.#tools.journalTurned();
  }

  /** Whether detached work is taken on. */
  get journal_health(): JournalHealth {
    if (this.#disk.health === 'down' || !this.#journal_full) return this.#disk;
    return {
      health: 'down',
      reason:
        'its journal is full of results that the control plane has not acknowledged: it is free again when those are',
    };
  }

  /** What the main thread says of the disk. */
  noteDisk(health: JournalHealth): void {
    this.#disk = health;
    this.#tools.journalTurned();
  }

  get size(): number {
    return this.#attempts.size;
  }

  /** Attempts that still do, or hold, something for somebody. */
  get live(): number {
    let live = 0;
    for (const attempt of this.#attempts.values()) if (attempt.state !== 'released') live++;
    return live;
  }

  get digest(): string {
    return this.#digest.value;
  }

  inventory(): InventoryItem[] {
    return Array.from(this.#attempts.values(), (attempt) => attempt.inventoryItem());
  }

  load(): AttemptLoad[] {
    const now_ms = this.#tools.clock.now_ms();
    return Array.from(this.#attempts.values(), ({ offer, state, accepted_at }) => ({
      job: offer.job,
      attempt: offer.attempt,
      backend: offer.backend,
      model: offer.model,
      state,
      age_ms: Math.round(now_ms - accepted_at),
    }));
  }

  say(message: NodeMessage): void {
    this.#outbox?.sendText(JSON.stringify(message));
  }

  // ── The link ──

  /** A link stands and has answered the inventory. */
  joined(outbox: Outbox, verdicts: readonly Verdict[]): void {
    this.#outbox = outbox;
    this.#journaling.joined();
    this.applyVerdicts(verdicts);
    const judged = new Set(verdicts.map((verdict) => keyOf(verdict.job, verdict.attempt)));
    for (const key of this.#attempts.keys()) if (!judged.has(key)) this.#askAgainSoon();
  }

  left(): void {
    this.#outbox = null;
    this.#journaling.left();
    this.#by_stream.clear();
    this.#unanswered = [];
    this.#ask_again?.cancel();
    this.#ask_again = null;
    for (const attempt of this.#attempts.values()) attempt.stream = null;
  }

  /** This thread ends; what is left is in the journal. */
  stop(): void {
    this.#journaling.stop();
  }

  applyVerdicts(verdicts: readonly Verdict[]): void {
    for (const verdict of verdicts) {
      const attempt = this.#attempts.get(keyOf(verdict.job, verdict.attempt));
      if (verdict.verdict === 'wait') this.#askAgainSoon();
      else if (attempt === undefined) this.#sayUnknown(verdict.job, verdict.attempt);
      else if (verdict.verdict === 'abandon' || !this.#keep(attempt, verdict)) this.#releaseAndTell(attempt);
    }
  }

  /** @returns false when it cannot go on from there */
  #keep(attempt: Attempt, verdict: Verdict): boolean {
    const { stream } = verdict;
    if (attempt.state === 'released' || stream === undefined || this.#outbox === null) return false;
    if (attempt.result_alone) {
      attempt.answer();
      return true;
    }
    // The same verdict again: output is under way and must not go back.
    if (attempt.stream === stream) return true;
    if (attempt.stream !== null) this.#leaveStream(attempt);
    const from = {
      acked_offset: verdict.acked_offset ?? 0,
      head_received: verdict.head_received ?? false,
    };
    if (!this.#outbox.attach(stream, attempt.out, from)) return false;
    attempt.stream = stream;
    this.#by_stream.set(stream, attempt);
    return true;
  }

  #askAgainSoon(): void {
    if (this.#ask_again !== null || this.#outbox === null) return;
    this.#ask_again = this.#tools.clock.after(ASK_AGAIN_MS, () => {
      this.#ask_again = null;
      this.say({ type: 'inventory.sync', inventory: this.inventory() });
    });
  }

  // ── Messages ──

  offered(offer: Offer): void {
    const outbox = this.#outbox;
    if (outbox === null) return;
    const known = this.#attempts.get(keyOf(offer.job, offer.attempt));
    if (known !== undefined) {
      if (known.state === 'released') this.#releaseAndTell(known);
      else known.answer();
      return;
    }
    const backend = this.#tools.backends.get(offer.backend);
    const refused = this.#whyNot(offer, backend === undefined);
    if (refused !== undefined || backend === undefined || !this.#tools.slots.take(backend.pool)) {
      const reason = refused ?? 'no_slot';
      this.say({ type: 'job.rejected', job: offer.job, attempt: offer.attempt, reason });
      return;
    }
    const attempt = new Attempt(offer, backend, this.#host);
    this.#enter(attempt);
    if (attempt.detached) this.#journaling.began(attempt);
    this.#by_stream.set(offer.stream, attempt);
    outbox.attach(offer.stream, attempt.out, { acked_offset: 0, head_received: false });
    // A small body comes in the same read as its offer: then `job.started` is answer enough.
    if (this.#unanswered.push(attempt) === 1) process.nextTick(() => this.#acceptUnanswered());
    this.#tools.changed();
  }

  #whyNot(offer: Offer, unknown_backend: boolean): string | undefined {
    if (this.draining) return 'draining';
    if (offer.kind !== 'inference') return 'unsupported_kind';
    if (unknown_backend) return 'unknown_backend';
    if (offer.body_length > BODY_MAX_BYTES) return 'body_too_large';
    // What a process finds in its socket after it stood still may be somebody else's by now.
    if (offer.owner === STORE_OWNER && !this.#tools.leased()) return 'no_lease';
    if (offer.owner === STORE_OWNER && this.#disk.health === 'down') return 'journal_unwritable';
    if (offer.owner === STORE_OWNER && this.#journal_full) return 'journal_full';
    return this.#inventory_bytes + itemBytes(offer) > INVENTORY_MAX_BYTES ? 'no_slot' : undefined;
  }

  #acceptUnanswered(): void {
    const waiting = this.#unanswered;
    this.#unanswered = [];
    for (const attempt of waiting) if (!attempt.answered) attempt.answer();
  }

  bodyFrame(stream: number, offset: number, payload: Uint8Array): Attempt | undefined {
    const attempt = this.#by_stream.get(stream);
    if (attempt === undefined) return undefined;
    if (attempt.takeBody(offset, payload)) return attempt;
    attempt.refuse('The request body did not arrive as it was offered.');
    return undefined;
  }

  bodyEnd(stream: number, length: number, complete: boolean): void {
    const attempt = this.#by_stream.get(stream);
    if (attempt === undefined || (attempt.detached && !this.#tools.leased())) return;
    if (attempt.endBody(length, complete)) return;
    // Its sender gave up in the middle, or counted otherwise than the offer.
    if (complete) attempt.refuse('The request body is not as long as was offered.');
    else this.#releaseAndTell(attempt);
  }

  /** `job.cancel` and `job.abandon`: what has ended is answered by its result, what is unknown by a release. */
  cancelled(job: string, number: number): void {
    const attempt = this.#attempts.get(keyOf(job, number));
    if (attempt === undefined) this.#sayUnknown(job, number);
    else if (attempt.state === 'finished') {
      this.#leaveStream(attempt);
      attempt.sayResult();
    } else this.#releaseAndTell(attempt);
  }

  resultAcknowledged(job: string, number: number): void {
    const attempt = this.#attempts.get(keyOf(job, number));
    if (attempt === undefined) return;
    // Only a result can be acknowledged; for what still runs the control plane wants no result any more.
    if (attempt.state === 'finished') this.#forget(attempt);
    else this.#releaseAndTell(attempt);
  }

  // ── Endings ──

  /**
   * Stops everything at once and forgets it, results too: another node may have it by now. But a detached result is
   * kept and told when the link is back, by this process or the next: it is worth having as long as nobody else was
   * given the job.
   */
  fence(which?: 'detached'): number {
    let held = 0;
    for (const attempt of this.#attempts.values()) {
      if (isKept(attempt) || (which === 'detached' && !attempt.detached)) continue;
      held++;
      this.#release(attempt);
      this.#forget(attempt);
    }
    return held;
  }

  /** Stops everything at once; the control plane is told now or with the next inventory. Detached results are kept. */
  releaseAll(): void {
    for (const attempt of this.#attempts.values()) if (!isKept(attempt)) this.#releaseAndTell(attempt);
  }

  /** The link has been away for too long for whoever waited for attached work. */
  releaseAttached(): void {
    for (const attempt of this.#attempts.values()) if (!attempt.detached) this.#releaseAndTell(attempt);
  }

  #releaseAndTell(attempt: Attempt): void {
    this.#release(attempt);
    if (this.#outbox === null) return;
    attempt.sayReleased();
    this.#forget(attempt);
  }

  #release(attempt: Attempt): void {
    if (attempt.state === 'released') return;
    this.#leaveStream(attempt);
    if (attempt.state === 'running') this.#tools.dropped(attempt);
    if (isKept(attempt)) this.#countResult(attempt, -1);
    attempt.release();
    this.#tools.changed();
  }

  #forget(attempt: Attempt): void {
    this.#leaveStream(attempt);
    attempt.out.discard();
    const { job, attempt: number } = attempt.offer;
    if (!this.#attempts.delete(keyOf(job, number))) return;
    if (isKept(attempt)) this.#countResult(attempt, -1);
    if (attempt.detached) this.#journaling.gone(attempt);
    this.#digest.remove(job, number);
    this.#inventory_bytes -= itemBytes(attempt.offer);
    this.#tools.changed();
  }

  #leaveStream(attempt: Attempt): void {
    if (attempt.stream === null) return;
    this.#by_stream.delete(attempt.stream);
    this.#outbox?.detach(attempt.stream);
    attempt.stream = null;
  }

  #sayUnknown(job: string, attempt: number): void {
    this.say({ type: 'job.released', job, attempt, started: false });
  }
}

/** A detached result: kept, link or no link, until it is acknowledged. */
function isKept(attempt: Attempt): boolean {
  return attempt.detached && attempt.state === 'finished';
}

function itemBytes({ job, owner, backend }: Offer): number {
  return ITEM_BYTES + Buffer.byteLength(job) + Buffer.byteLength(owner) + Buffer.byteLength(backend);
}

function keyOf(job: string, attempt: number): string {
  return `${attempt} ${job}`;
}
