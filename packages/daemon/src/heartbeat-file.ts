import type { Clock, Log, Timer } from '@flotilla/core';
import { writeFileAtomically } from './atomic-file.ts';

/**
 * `heartbeat.json`: what other programs on this machine may know of the daemon without asking it.
 *
 *     starting ──running()──▶ running ──stopping()──▶ stopping ──stopped()──▶ stopped
 *
 * Moved by `daemon.ts` alone: `running` is on disk before the link opens; `stopping()` cancels the timer first, and
 * no work is released before it has returned. Writing looks up no process, calls no API and touches no other file.
 * A write that fails is tried again at the next interval: a full disk must not end the work, and a reader sees it as
 * age. After a crash the last status stays, and grows older than `stale_after_ms`.
 */
export type HeartbeatStatus = 'starting' | 'running' | 'stopping' | 'stopped';

export interface HeartbeatOptions {
  path: string;
  registry_path: string;
  pid: number;
  boot_id: string;
  stale_after_ms: number;
  progress_seq: () => number;
  clock: Clock;
  log: Log;
}

/** Four writes fit into the time after which a reader gives the daemon up. */
export function heartbeatInterval(stale_after_ms: number): number {
  return Math.min(15_000, Math.max(500, stale_after_ms / 4));
}

export class HeartbeatFile {
  readonly #options: HeartbeatOptions;
  readonly #interval_ms: number;
  #status: HeartbeatStatus = 'starting';
  #link: 'connected' | 'disconnected' = 'disconnected';
  #last_ack_at: number | null = null;
  #timer: Timer | null = null;
  #writes: Promise<void> = Promise.resolve();
  #failing = false;

  constructor(options: HeartbeatOptions) {
    this.#options = options;
    this.#interval_ms = heartbeatInterval(options.stale_after_ms);
  }

  /** Rejects when the directory cannot be written: better told at the start than found out by a stale file. */
  async starting(): Promise<void> {
    await this.#write();
  }

  async running(): Promise<void> {
    this.#status = 'running';
    await this.#write();
    this.#schedule();
  }

  async stopping(): Promise<void> {
    this.#timer?.cancel();
    this.#timer = null;
    this.#status = 'stopping';
    await this.#tryWrite();
  }

  async stopped(): Promise<void> {
    this.#timer?.cancel();
    this.#timer = null;
    this.#status = 'stopped';
    this.#link = 'disconnected';
    await this.#tryWrite();
  }

  /** A change is written at once; while stopping too, for the link lives until its work is done. */
  link(state: 'connected' | 'disconnected'): void {
    if (this.#link === state) return;
    this.#link = state;
    void this.#tryWrite();
  }

  /** Goes out with the next write: an acknowledged beat is no reason for one of its own. */
  acked(at_wall_ms: number): void {
    this.#last_ack_at = at_wall_ms;
  }

  #schedule(): void {
    // Its first write takes its time, and a stop may come meanwhile.
    if (this.#status !== 'running') return;
    this.#timer = this.#options.clock.after(this.#interval_ms, () => {
      void this.#tryWrite();
      this.#schedule();
    });
  }

  async #tryWrite(): Promise<void> {
    try {
      await this.#write();
      if (this.#failing) this.#options.log.info({}, 'heartbeat.json can be written again.');
      this.#failing = false;
    } catch (error) {
      if (!this.#failing) {
        this.#options.log.error({ reason: (error as Error).message }, 'heartbeat.json cannot be written.');
      }
      this.#failing = true;
    }
  }

  /** One write after the other, each with what is true when it begins: an older status never lands on a newer. */
  #write(): Promise<void> {
    const write = this.#writes.then(() => writeFileAtomically(this.#options.path, this.#text()));
    this.#writes = write.catch(() => {});
    return write;
  }

  #text(): string {
    const { pid, boot_id, stale_after_ms, registry_path, progress_seq, clock } = this.#options;
    const beat = {
      pid,
      boot_id,
      status: this.#status,
      link: this.#link,
      last_ack_at: this.#last_ack_at === null ? null : new Date(this.#last_ack_at).toISOString(),
      progress_seq: progress_seq(),
      interval_ms: this.#interval_ms,
      stale_after_ms,
      updated_at: new Date(clock.wall_ms()).toISOString(),
      registry_path,
    };
    return `${JSON.stringify(beat, null, 2)}\n`;
  }
}
