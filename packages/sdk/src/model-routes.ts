import { Listing } from './listing.ts';
import type { Answer, Body, Query } from './routes.ts';
import type { CallOptions, Transport } from './transport.ts';

export type Route = Answer<'showRoute'>;
export type RouteExplanation = Answer<'explainRoute'>;

/** Public models and where their requests go. */
export class ModelRoutes {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  list(query: Query<'listRoutes'> = {}, options: CallOptions = {}): Listing<Route> {
    return new Listing((cursor) =>
      this.#transport.call('listRoutes', { ...options, query: { ...query, ...cursor } }),
    );
  }

  create(body: Body<'createRoute'>, options: CallOptions = {}): Promise<Route> {
    return this.#transport.call('createRoute', { ...options, body });
  }

  /** Where a request would go now, and why; nothing is asked of anybody. */
  explain(body: Body<'explainRoute'>, options: CallOptions = {}): Promise<RouteExplanation> {
    return this.#transport.call('explainRoute', { ...options, body });
  }

  show(id: string, options: CallOptions = {}): Promise<Route> {
    return this.#transport.call('showRoute', { ...options, id });
  }

  update(id: string, body: Body<'updateRoute'>, options: CallOptions = {}): Promise<Route> {
    return this.#transport.call('updateRoute', { ...options, id, body });
  }

  delete(id: string, options: CallOptions = {}): Promise<void> {
    return this.#transport.call('deleteRoute', { ...options, id });
  }
}
