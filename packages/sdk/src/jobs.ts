import { Listing } from './listing.ts';
import type { Answer, Query } from './routes.ts';
import type { CallOptions, Transport } from './transport.ts';

export type Job = Answer<'showJob'>;
export type Explanation = Answer<'explainJob'>;

/** Units of work: every request to a model is one. */
export class Jobs {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  list(query: Query<'listJobs'> = {}, options: CallOptions = {}): Listing<Job> {
    return new Listing((cursor) =>
      this.#transport.call('listJobs', { ...options, query: { ...query, ...cursor } }),
    );
  }

  show(id: string, options: CallOptions = {}): Promise<Job> {
    return this.#transport.call('showJob', { ...options, id });
  }

  /** Every node with its verdict on this job. */
  explain(id: string, options: CallOptions = {}): Promise<Explanation> {
    return this.#transport.call('explainJob', { ...options, id });
  }

  cancel(id: string, options: CallOptions = {}): Promise<Job> {
    return this.#transport.call('cancelJob', { ...options, id });
  }
}
