import type { Answer } from './routes.ts';
import type { CallOptions, Transport } from './transport.ts';

export type Model = Answer<'model'>;

/** Models that this key can use now. */
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
}
