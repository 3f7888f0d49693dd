import { type RelayBackend, relayBackend } from '@flotilla/core';
import type { BackendTarget } from '../threads.ts';

/** A backend as the relay asks it, and whose slots its work takes. */
export interface Backend extends RelayBackend {
  readonly id: string;
  readonly pool: string;
  readonly base_url: string;
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
      const { id, pool, base_url } = target;
      const known = before.get(id);
      const refuses_usage = known?.base_url === base_url && known.refuses_usage;
      const backend = relayBackend(target, this.#user_agent);
      this.#backends.set(id, { ...backend, id, pool, base_url, refuses_usage });
    }
  }
}
