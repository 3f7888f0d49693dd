import { FlotillaApiError, errorOfEvent } from './error.ts';
import { parseJson, printJson } from './exact-json.ts';
import { Listing } from './listing.ts';
import type { Answer, Body, Query } from './routes.ts';
import { readEvents } from './sse.ts';
import type { CallOptions, Transport } from './transport.ts';

export type Job = Answer<'showJob'>;
export type Explanation = Answer<'explainJob'>;
/** Work that nobody waits for on a connection: a request to a model, and how it is to be treated. */
export type JobRequest = Body<'createJob'>;
export type JobAccepted = Answer<'createJob'>;
/** Of one job of a batch: it was accepted, or why not. */
export type JobVerdict = Answer<'createJobs'>['data'][number];

export interface SubmitOptions extends CallOptions {
  /** With the same one the same body is one job, however often it is sent. */
  idempotency_key?: string;
}

export interface WatchOptions extends CallOptions {
  /** How long the control plane may be out of reach before watching fails; 60 s unless it says else. */
  patience_ms?: number;
}

const PATIENCE_MS = 60_000;
const PAUSE_MS = 1000;
/** A control plane says something every 5 s; one that is silent for so long is not there any more. */
const SILENT_MS = 20_000;

/**
 * Units of work: every request to a model is one. Those of `submit` are committed when it resolves, and run without a
 * connection. Where a job is taken, its JSON as text is, too, and is sent as it is.
 */
export class Jobs {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** Resolves once the job is committed: it will end, whatever process dies meanwhile. */
  submit(job: JobRequest | string, options: SubmitOptions = {}): Promise<JobAccepted> {
    const { idempotency_key, ...call } = options;
    const headers = {
      ...call.headers,
      ...(idempotency_key === undefined ? {} : { 'idempotency-key': idempotency_key }),
    };
    return this.#transport.call('createJob', { ...call, headers, text: textOf(job) });
  }

  /** Up to 1,000, each with its own verdict, in order; `idempotency_key` is a field of each. */
  async submitBatch(
    jobs: readonly ((JobRequest & { idempotency_key?: string }) | string)[],
    options: CallOptions = {},
  ): Promise<JobVerdict[]> {
    const text = `{"jobs":[${jobs.map(textOf).join(',')}]}`;
    return (await this.#transport.call('createJobs', { ...options, text })).data;
  }

  list(query: Query<'listJobs'> = {}, options: CallOptions = {}): Listing<Job> {
    return new Listing((cursor) =>
      this.#transport.call('listJobs', { ...options, query: { ...query, ...cursor } }),
    );
  }

  show(id: string, options: CallOptions = {}): Promise<Job> {
    return this.#transport.call('showJob', { ...options, id });
  }

  /** What the backend answered; an integer that a number cannot hold is a `JSON.rawJSON` of its digits. */
  async result(id: string, options: CallOptions = {}): Promise<unknown> {
    const text = await this.resultText(id, options);
    try {
      return parseJson(text);
    } catch (cause) {
      throw new FlotillaApiError('The result is not JSON; read it as text.', { code: 'unreadable', cause });
    }
  }

  /** What the backend answered, as it came. */
  resultText(id: string, options: CallOptions = {}): Promise<string> {
    return this.#transport.read('jobResult', { ...options, id });
  }

  /** Every node with its verdict on this job. */
  explain(id: string, options: CallOptions = {}): Promise<Explanation> {
    return this.#transport.call('explainJob', { ...options, id });
  }

  cancel(id: string, options: CallOptions = {}): Promise<Job> {
    return this.#transport.call('cancelJob', { ...options, id });
  }

  /** Erases request and result at once; an open job is cancelled first. */
  delete(id: string, options: CallOptions = {}): Promise<void> {
    return this.#transport.call('deleteJob', { ...options, id });
  }

  /**
   * The job as it is, then after each transition, until it has ended. A connection that breaks is made anew; only
   * `patience_ms` without any word from the control plane throws.
   */
  async *watch(id: string, options: WatchOptions = {}): AsyncGenerator<Job, void> {
    const { patience_ms = PATIENCE_MS, ...call } = options;
    let heard_ms = performance.now();
    let last = '';
    for (;;) {
      let pause_ms = PAUSE_MS;
      try {
        for await (const job of this.#events(id, call)) {
          heard_ms = performance.now();
          if (job === null) continue;
          // A connection begins with the job as it is, which may be known already.
          const text = printJson(job);
          if (text !== last) yield job;
          last = text;
          if (job.finished_at !== null) return;
        }
      } catch (error) {
        if (!(error instanceof FlotillaApiError) || !error.retryable) throw error;
        if (performance.now() - heard_ms > patience_ms) throw error;
        pause_ms = error.retry_after_ms ?? PAUSE_MS;
      }
      await pause(pause_ms, call.signal);
    }
  }

  /** The job once it has ended, however it ended. */
  async wait(id: string, options: WatchOptions = {}): Promise<Job> {
    let last: Job | undefined;
    for await (const job of this.watch(id, options)) last = job;
    // Watching ends with a job that has ended, or it throws.
    return last!;
  }

  /** One connection's events; null for each comment. */
  async *#events(id: string, options: CallOptions): AsyncGenerator<Job | null, void> {
    const silence = new AbortController();
    const silent = () =>
      silence.abort(new FlotillaApiError('The control plane fell silent.', { code: 'cut' }));
    let timer = setTimeout(silent, SILENT_MS);
    const signal = options.signal ? AbortSignal.any([options.signal, silence.signal]) : silence.signal;
    try {
      const { body, headers } = await this.#transport.open('jobEvents', { ...options, id, signal });
      if (body === null) return;
      for await (const { event, data } of readEvents(body)) {
        clearTimeout(timer);
        timer = setTimeout(silent, SILENT_MS);
        if (event === 'state') yield parseJson(data) as Job;
        else if (event === 'comment') yield null;
        else if (event === 'error') {
          const error = errorOfEvent(parseJson(data), headers.get('x-request-id') ?? undefined);
          if (error !== undefined) throw error;
        }
      }
    } catch (error) {
      if (options.signal?.aborted === true || error instanceof FlotillaApiError) throw error;
      throw new FlotillaApiError('The connection broke while the job was watched.', {
        code: 'cut',
        cause: error,
      });
    } finally {
      clearTimeout(timer);
    }
  }
}

function textOf(job: object | string): string {
  return typeof job === 'string' ? job : printJson(job);
}

function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const over = () => {
      signal?.removeEventListener('abort', aborted);
      resolve();
    };
    const timer = setTimeout(over, ms);
    const aborted = () => {
      clearTimeout(timer);
      reject(signal?.reason as Error);
    };
    if (signal?.aborted === true) aborted();
    else signal?.addEventListener('abort', aborted, { once: true });
  });
}
