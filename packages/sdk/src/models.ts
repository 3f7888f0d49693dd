import type { Answer, Body, Query } from './routes.ts';
import type { CallOptions, Transport } from './transport.ts';

export type Model = Answer<'model'>;
export type ModelDiscovery = Answer<'showDiscovery'>;

/** Under the time that proxies commonly grant a silent answer. */
const WAIT_MS = 20_000;

/** Models that this key can use now, and what a node has. */
export class Models {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  async list(options: CallOptions = {}): Promise<Model[]> {
    return (await this.#transport.call('models', options)).data;
  }

  show(id: string, options: CallOptions = {}): Promise<Model> {
    return this.#transport.call('model', { ...options, id });
  }

  /** Asks a node for its models now. The answer tells how it stands; `discovery` tells how it ends. */
  discover(
    node: string,
    body: Body<'discoverModels'> = {},
    options: CallOptions = {},
  ): Promise<ModelDiscovery> {
    return this.#transport.call('discoverModels', { ...options, id: node, body });
  }

  /** With `wait_ms` it is answered when it has ended, or has come further than the `stage` that is known. */
  discovery(
    id: string,
    query: Query<'showDiscovery'> = {},
    options: CallOptions = {},
  ): Promise<ModelDiscovery> {
    return this.#transport.call('showDiscovery', { ...options, id, query });
  }

  /**
   * Follows a discovery to its end.
   * @param progress called with each stage it reaches
   */
  async discovered(
    found: ModelDiscovery,
    progress: (discovery: ModelDiscovery) => void = () => {},
    options: CallOptions = {},
  ): Promise<ModelDiscovery> {
    let now = found;
    while (now.finished_at === null) {
      progress(now);
      now = await this.discovery(now.id, { wait_ms: WAIT_MS, stage: now.stage }, options);
    }
    return now;
  }
}
