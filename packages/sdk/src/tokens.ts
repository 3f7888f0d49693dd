import { Listing } from './listing.ts';
import type { Answer, Body, Item, Query } from './routes.ts';
import type { CallOptions, Transport } from './transport.ts';

export type EnrolmentToken = Item<'listTokens'>;

/** Enrolment tokens. */
export class Tokens {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  list(query: Query<'listTokens'> = {}, options: CallOptions = {}): Listing<EnrolmentToken> {
    return new Listing((cursor) =>
      this.#transport.call('listTokens', { ...options, query: { ...query, ...cursor } }),
    );
  }

  /** The answer's `token` is shown this once. */
  create(body: Body<'createToken'> = {}, options: CallOptions = {}): Promise<Answer<'createToken'>> {
    return this.#transport.call('createToken', { ...options, body });
  }

  delete(id: string, options: CallOptions = {}): Promise<void> {
    return this.#transport.call('deleteToken', { ...options, id });
  }
}
