import type { Operation } from '@flotilla/protocol';
import type { BackendTarget } from '../threads.ts';

const PATHS: Record<Operation, string> = {
  chat: '/chat/completions',
  completions: '/completions',
  embeddings: '/embeddings',
};

/** A backend as the relay asks it: where, how, and what was learnt about it. */
export interface Backend {
  readonly id: string;
  readonly pool: string;
  readonly base_url: string;
  readonly origin: string;
  readonly prefix: string;
  /** Name and value in turn, as undici takes them. */
  readonly headers: readonly string[];
  readonly idle_timeout_ms: number | undefined;
  /** It answered 400 or 422 to `stream_options.include_usage` and served without: it is not asked for it again. */
  refuses_usage: boolean;
}

export class Backends {
  readonly #backends = new Map<string, Backend>();
  readonly #user_agent: string;

  constructor(targets: readonly BackendTarget[], user_agent: string) {
    this.#user_agent = user_agent;
    this.replace(targets);
  }

  get(id: string): Backend | undefined {
    return this.#backends.get(id);
  }

  /** The backends as configured now; what was learnt stays while the address does. */
  replace(targets: readonly BackendTarget[]): void {
    const before = new Map(this.#backends);
    this.#backends.clear();
    for (const target of targets) {
      const known = before.get(target.id);
      const learnt = known?.base_url === target.base_url && known.refuses_usage;
      this.#backends.set(target.id, this.#read(target, learnt));
    }
  }

  #read(target: BackendTarget, refuses_usage: boolean): Backend {
    const url = new URL(target.base_url);
    const own = Object.entries(target.headers).flatMap(([name, value]) => [name, value]);
    return {
      id: target.id,
      pool: target.pool,
      base_url: target.base_url,
      origin: url.origin,
      prefix: url.pathname.replace(/\/+$/, ''),
      headers: [
        'content-type',
        'application/json',
        'accept-encoding',
        'identity',
        'user-agent',
        this.#user_agent,
        ...own,
      ],
      idle_timeout_ms: target.idle_timeout_ms,
      refuses_usage,
    };
  }
}

export function pathOf(backend: Backend, operation: Operation): string {
  return backend.prefix + PATHS[operation];
}
