import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { note } from '../terminal/output.ts';
import { logTail } from '../log-file.ts';
import { type SelfOptions, startSelf } from '../self.ts';

export interface PartOptions extends Omit<SelfOptions, 'part' | 'args'> {
  /** Asked at each start: a new process takes the place of the old one. */
  args: () => string[];
}

/** A crash is answered by a new start; one that comes sooner than this after the last says that it would not help. */
const CRASH_LOOP_MS = 5_000;

/**
 * A child process that `flotilla up` runs beside itself.
 *
 *     running ──killed by a signal──▶ running (a new process)
 *        │ └────── exits by itself ──▶ ended (and says so: it had a reason)
 *        ├──────── stop() ───────────▶ ended
 *        └─── cannot be started ─────▶ ended (and says so)
 *
 * Whatever becomes of the parent, the child sees its channel close and ends.
 */
export class Part {
  readonly name: string;
  readonly #options: PartOptions;
  readonly #ended = Promise.withResolvers<void>();
  #child: ChildProcess | undefined;
  #started_ms = 0;
  #stopping = false;

  constructor(name: string, options: PartOptions) {
    this.name = name;
    this.#options = options;
  }

  get log(): string {
    return this.#options.log;
  }

  /** Undefined when it has ended. */
  get pid(): number | undefined {
    return this.#child?.pid;
  }

  get running(): boolean {
    return this.#child !== undefined;
  }

  start(): ChildProcess {
    const child = startSelf({ ...this.#options, args: this.#options.args(), part: true });
    child.on('error', (error) => note(`The ${this.name} cannot be started: ${error.message}`));
    if (child.pid === undefined) {
      // There will be no `exit`. It must not be signalled either: its handle names no process, or any, or, with 0,
      // the group of this one.
      this.#ended.resolve();
      return child;
    }
    this.#child = child;
    this.#started_ms = performance.now();
    child.on('exit', (code, signal) => void this.#exited(code, signal));
    return child;
  }

  /** Asks it to end and waits until it has. */
  async stop(): Promise<void> {
    if (!this.#child) return;
    this.#stopping = true;
    this.#child.kill('SIGTERM');
    await this.#ended.promise;
  }

  async #exited(code: number | null, signal: NodeJS.Signals | null): Promise<void> {
    this.#child = undefined;
    const crashed = code === null && !this.#stopping;
    if (crashed && performance.now() - this.#started_ms > CRASH_LOOP_MS) {
      note(`The ${this.name} was ended by ${signal}; it is started again.`);
      this.start();
      return;
    }
    this.#ended.resolve();
    if (this.#stopping) return;
    const how = code === null ? `was ended by ${signal}` : `has ended with code ${code}`;
    note(`The ${this.name} ${how}. The end of its log, ${this.log}:\n${await logTail(this.log)}`);
  }
}

/** The child's first message of a type; rejects when it ends before, or has ended. */
export async function message(child: ChildProcess, type: string): Promise<Record<string, unknown>> {
  // What has come before is not told again: without a process id it was never started.
  const { pid, exitCode, signalCode } = child;
  if (pid === undefined || exitCode !== null || signalCode !== null) throw endedTooSoon();
  const left = new AbortController();
  const ended = once(child, 'exit', { signal: left.signal }).then(() => {
    throw endedTooSoon();
  });
  const heard = new Promise<Record<string, unknown>>((resolve) => {
    child.on('message', (value) => {
      const said = value as Record<string, unknown>;
      if (said['type'] === type) resolve(said);
    });
  });
  try {
    return await Promise.race([heard, ended]);
  } finally {
    ended.catch(() => undefined);
    left.abort();
  }
}

function endedTooSoon(): Error {
  return new Error('It ended before it was ready.');
}
