import { Listing } from './listing.ts';
import type { Answer, Item, Query } from './routes.ts';
import type { CallOptions, Transport } from './transport.ts';

export type UsageRow = Item<'usage'>;
/** What is left of a key's rates, its requests at once and its budget. */
export type Limits = Answer<'usageLimits'>;
export type UsageGroup = Answer<'usageSummary'>['data'][number];

/** Settled requests and their tokens. */
export class Usage {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** One row a request, newest first. */
  list(query: Query<'usage'> = {}, options: CallOptions = {}): Listing<UsageRow> {
    return new Listing((cursor) =>
      this.#transport.call('usage', { ...options, query: { ...query, ...cursor } }),
    );
  }

  /** Added up by model, key, node or day. */
  summary(query: Query<'usageSummary'> = {}, options: CallOptions = {}): Promise<Answer<'usageSummary'>> {
    return this.#transport.call('usageSummary', { ...options, query });
  }

  /** What is left for the key in use; an admin may ask for another one's. */
  limits(query: Query<'usageLimits'> = {}, options: CallOptions = {}): Promise<Limits> {
    return this.#transport.call('usageLimits', { ...options, query });
  }
}
