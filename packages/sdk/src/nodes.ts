import { Listing } from './listing.ts';
import type { Answer, Body, Query } from './routes.ts';
import type { CallOptions, Transport } from './transport.ts';

export type Node = Answer<'showNode'>;
export type NodeModels = Answer<'nodeModels'>;

/** The roster. */
export class Nodes {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  list(query: Query<'listNodes'> = {}, options: CallOptions = {}): Listing<Node> {
    return new Listing((cursor) =>
      this.#transport.call('listNodes', { ...options, query: { ...query, ...cursor } }),
    );
  }

  show(id: string, options: CallOptions = {}): Promise<Node> {
    return this.#transport.call('showNode', { ...options, id });
  }

  update(id: string, body: Body<'updateNode'>, options: CallOptions = {}): Promise<Node> {
    return this.#transport.call('updateNode', { ...options, id, body });
  }

  cordon(id: string, options: CallOptions = {}): Promise<Node> {
    return this.#transport.call('cordonNode', { ...options, id });
  }

  uncordon(id: string, options: CallOptions = {}): Promise<Node> {
    return this.#transport.call('uncordonNode', { ...options, id });
  }

  /** Answers at once; the node's `drain` tells how far it is. */
  drain(id: string, body: Body<'drainNode'> = {}, options: CallOptions = {}): Promise<Node> {
    return this.#transport.call('drainNode', { ...options, id, body });
  }

  /** The answer's `credential` is shown this once. */
  rotate(
    id: string,
    body: Body<'rotateNode'> = {},
    options: CallOptions = {},
  ): Promise<Answer<'rotateNode'>> {
    return this.#transport.call('rotateNode', { ...options, id, body });
  }

  /** The last list of models of each backend, with its age. */
  models(id: string, options: CallOptions = {}): Promise<NodeModels> {
    return this.#transport.call('nodeModels', { ...options, id });
  }

  revoke(id: string, options: CallOptions = {}): Promise<Node> {
    return this.#transport.call('revokeNode', { ...options, id });
  }

  delete(id: string, options: CallOptions = {}): Promise<void> {
    return this.#transport.call('deleteNode', { ...options, id });
  }
}
