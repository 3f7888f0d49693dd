import { Listing } from './listing.ts';
import type { Answer, Body, Query } from './routes.ts';
import type { CallOptions, Transport } from './transport.ts';

export type Provider = Answer<'showProvider'>;

/** Upstream APIs that the control plane calls itself. */
export class Providers {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  list(query: Query<'listProviders'> = {}, options: CallOptions = {}): Listing<Provider> {
    return new Listing((cursor) =>
      this.#transport.call('listProviders', { ...options, query: { ...query, ...cursor } }),
    );
  }

  /** Its key is sealed, and shown nowhere. */
  create(body: Body<'createProvider'>, options: CallOptions = {}): Promise<Provider> {
    return this.#transport.call('createProvider', { ...options, body });
  }

  show(id: string, options: CallOptions = {}): Promise<Provider> {
    return this.#transport.call('showProvider', { ...options, id });
  }

  update(id: string, body: Body<'updateProvider'>, options: CallOptions = {}): Promise<Provider> {
    return this.#transport.call('updateProvider', { ...options, id, body });
  }

  /** Asks it now how it is. */
  probe(id: string, options: CallOptions = {}): Promise<Provider> {
    return this.#transport.call('probeProvider', { ...options, id });
  }

  delete(id: string, options: CallOptions = {}): Promise<void> {
    return this.#transport.call('deleteProvider', { ...options, id });
  }
}
