import type { BodyMemory } from '../body-memory.ts';
import { isJson } from '../is-json.ts';
import type { ActiveJob, JobSink } from '../dispatch/active-job.ts';
import type { Attempt, AttemptResult } from '../dispatch/attempt.ts';

/**
 * The answer of a detached job as it comes in. Nobody waits on a connection for it, so it is kept whole, up to a bound,
 * until it is committed as the job's result. Its request is in the budget of bodies for as long.
 */
export interface CollectorDeps {
  limit_bytes: number;
  request_bytes: number;
  memory: BodyMemory;
  started(attempt: Attempt): void;
  credit(attempt: Attempt, offset: number): void;
  /** The answer is larger than anything that is kept. */
  overflowed(attempt: Attempt): void;
}

/** The node hears this often how much of its answer is here. */
const CREDIT_EVERY_BYTES = 64 * 1024;

export class Collector implements JobSink {
  readonly #deps: CollectorDeps;
  #chunks: Uint8Array[] = [];
  #bytes = 0;
  /** Of the budget, until the answer is committed or void. */
  #held = 0;
  #credited = 0;
  #closed = false;

  constructor(deps: CollectorDeps) {
    this.#deps = deps;
    deps.memory.take(deps.request_bytes);
  }

  started(attempt: Attempt): void {
    this.#deps.started(attempt);
  }

  head(): void {}

  body(attempt: Attempt, bytes: Uint8Array): void {
    this.#bytes += bytes.byteLength;
    if (this.#bytes > this.#deps.limit_bytes) {
      this.discard();
      return this.#deps.overflowed(attempt);
    }
    // A copy: the bytes are part of a larger frame's memory, which would be kept with them.
    this.#chunks.push(new Uint8Array(bytes));
    this.#deps.memory.take(bytes.byteLength);
    this.#held += bytes.byteLength;
    if (this.#bytes - this.#credited < CREDIT_EVERY_BYTES) return;
    this.#credited = this.#bytes;
    this.#deps.credit(attempt, this.#bytes);
  }

  discard(): void {
    this.#deps.memory.give(this.#held);
    this.#held = 0;
    this.#chunks = [];
    this.#bytes = 0;
    this.#credited = 0;
  }

  /** Neither is needed any longer. */
  close(): void {
    this.discard();
    if (!this.#closed) this.#deps.memory.give(this.#deps.request_bytes);
    this.#closed = true;
  }

  /** A success is JSON: whoever reads it is told so, without a second look. */
  fault({ status }: AttemptResult): string | null {
    return status < 400 && !isJson(this.#whole()) ? 'the answer is not JSON' : null;
  }

  /** Ends are the owner's to carry out: see held-jobs.ts. */
  finished(): void {}

  /** Hands the answer over, once. Undefined: the bytes are no text that can be kept. */
  text(): string | undefined {
    const whole = this.#whole();
    this.#chunks = [];
    try {
      const text = decoder.decode(whole);
      return text.includes('\0') ? undefined : text;
    } catch {
      return undefined;
    }
  }

  #whole(): Uint8Array {
    const [first, ...others] = this.#chunks;
    return first !== undefined && others.length === 0 ? first : Buffer.concat(this.#chunks);
  }
}

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

export function collectorOf(job: ActiveJob): Collector {
  return job.sink as Collector;
}
