import { Listing } from './listing.ts';
import type { Answer, Body, Query } from './routes.ts';
import type { CallOptions, Transport } from './transport.ts';

export type Key = Answer<'showKey'>;

/** API keys. */
export class Keys {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  list(query: Query<'listKeys'> = {}, options: CallOptions = {}): Listing<Key> {
    return new Listing((cursor) =>
      this.#transport.call('listKeys', { ...options, query: { ...query, ...cursor } }),
    );
  }

  /** The answer's `key` is shown this once. */
  create(body: Body<'createKey'>, options: CallOptions = {}): Promise<Answer<'createKey'>> {
    return this.#transport.call('createKey', { ...options, body });
  }

  show(id: string, options: CallOptions = {}): Promise<Key> {
    return this.#transport.call('showKey', { ...options, id });
  }

  update(id: string, body: Body<'updateKey'>, options: CallOptions = {}): Promise<Key> {
    return this.#transport.call('updateKey', { ...options, id, body });
  }

  revoke(id: string, options: CallOptions = {}): Promise<Key> {
    return this.#transport.call('revokeKey', { ...options, id });
  }
}
