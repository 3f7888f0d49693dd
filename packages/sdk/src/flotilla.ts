import { Audit } from './audit.ts';
import { Chat } from './chat.ts';
import { FlotillaApiError } from './error.ts';
import { Jobs } from './jobs.ts';
import { Keys } from './keys.ts';
import { Models } from './models.ts';
import { ModelRoutes } from './model-routes.ts';
import { Nodes } from './nodes.ts';
import { Providers } from './providers.ts';
import type { Answer, RouteName } from './routes.ts';
import { Tokens } from './tokens.ts';
import { type CallInput, type CallOptions, type FlotillaOptions, Transport } from './transport.ts';
import { Usage } from './usage.ts';

/**
 * A client of one control plane.
 *
 *     const flotilla = new Flotilla({ url: 'http://127.0.0.1:7400', api_key });
 *     for await (const node of flotilla.nodes.list()) process.stdout.write(`${node.name}\n`);
 */
export class Flotilla {
  readonly #transport: Transport;
  readonly keys: Keys;
  readonly tokens: Tokens;
  readonly nodes: Nodes;
  readonly providers: Providers;
  readonly routes: ModelRoutes;
  readonly jobs: Jobs;
  readonly usage: Usage;
  readonly audit: Audit;
  readonly models: Models;
  readonly chat: Chat;

  constructor(options: FlotillaOptions) {
    const transport = new Transport(options);
    this.#transport = transport;
    this.keys = new Keys(transport);
    this.tokens = new Tokens(transport);
    this.nodes = new Nodes(transport);
    this.providers = new Providers(transport);
    this.routes = new ModelRoutes(transport);
    this.jobs = new Jobs(transport);
    this.usage = new Usage(transport);
    this.audit = new Audit(transport);
    this.models = new Models(transport);
    this.chat = new Chat(transport);
  }

  /** The key in use: its name and rights. */
  whoami(options: CallOptions = {}): Promise<Answer<'whoami'>> {
    return this.#transport.call('whoami', options);
  }

  /** Resolves when the control plane can serve; an error tells what is missing. */
  ready(options: CallOptions = {}): Promise<Answer<'readyz'>> {
    return this.#transport.call('readyz', options);
  }

  /** The whole store as it is at one moment: the bytes of a file that `flotilla restore` reads. Needs an admin's key. */
  async backup(options: CallOptions = {}): Promise<ReadableStream<Uint8Array<ArrayBuffer>>> {
    const { body } = await this.#transport.open('backup', options);
    if (body === null) throw new FlotillaApiError('The answer has no body.', { code: 'unreadable' });
    return body;
  }

  /** Any route by its name in the protocol, typed. */
  call<N extends RouteName>(name: N, input: CallInput<N> = {}): Promise<Answer<N>> {
    return this.#transport.call(name, input);
  }

  /** Any route by its name, as the raw answer: for streams and for bytes. */
  open<N extends RouteName>(name: N, input: CallInput<N> = {}): Promise<Response> {
    return this.#transport.open(name, input);
  }
}
