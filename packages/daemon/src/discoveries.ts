import type { Clock, Log } from '@flotilla/core';
import {
  type BackendTold,
  DISCOVERY_STAGES,
  type DiscoveryRequest,
  type DiscoveryStage,
  type NodeMessageOf,
} from '@flotilla/protocol';
import type { BackendSet } from './backends/backend-set.ts';

/**
 * What the control plane asks this node about its models, each request once however often it is asked.
 *
 *     (unknown) ──asked──▶ asking ──all told, or the time is nearly over──▶ told ──acknowledged──▶ (unknown)
 *
 * Asked again, it is answered as it stands: how far it is, or once more what came of it. So whatever is lost on the
 * way, in either direction, comes with the next beat or the next link. Nothing of it is written down: a daemon that is
 * started anew is asked again, and asks again.
 */
export interface DiscoveriesOptions {
  backends: Pick<BackendSet, 'discover'>;
  post: (message: DiscoveryMessage) => void;
  clock: Clock;
  log: Log;
}

export type DiscoveryMessage = NodeMessageOf<'discovery.progress'> | NodeMessageOf<'discovery.result'>;

interface Discovery {
  readonly request: string;
  readonly backend: string | undefined;
  /** Of the backends that have not told yet. */
  readonly stages: Map<string, DiscoveryStage>;
  readonly told: Map<string, BackendTold>;
  said: NodeMessageOf<'discovery.progress'> | null;
  result: NodeMessageOf<'discovery.result'> | null;
}

/** More are not held at once: those told go first; one for which there is no room is asked again with a beat. */
const HELD_MOST = 32;
/** What came of it must arrive before the control plane gives up. */
const WAY_BACK_MS = 500;
/** A message has 256 KiB at most; half of it holds a thousand models. */
const RESULT_MAX_BYTES = 128 * 1024;

export class Discoveries {
  readonly #options: DiscoveriesOptions;
  readonly #held = new Map<string, Discovery>();

  constructor(options: DiscoveriesOptions) {
    this.#options = options;
  }

  asked({ request, backend, left_ms }: DiscoveryRequest): void {
    const held = this.#held.get(request);
    if (held !== undefined) {
      const message = held.result ?? held.said;
      if (message !== null) this.#options.post(message);
      return;
    }
    if (!this.#makeRoom()) return;
    const discovery: Discovery = {
      request,
      backend,
      stages: new Map(),
      told: new Map(),
      said: null,
      result: null,
    };
    this.#held.set(request, discovery);
    this.#say(discovery, 'claimed', backend);
    void this.#ask(discovery, left_ms);
  }

  acknowledged(request: string): void {
    this.#held.delete(request);
  }

  #makeRoom(): boolean {
    if (this.#held.size < HELD_MOST) return true;
    for (const { request, result } of this.#held.values()) {
      if (result !== null) return this.#held.delete(request);
    }
    return false;
  }

  async #ask(discovery: Discovery, left_ms: number): Promise<void> {
    const { backends, clock, log } = this.#options;
    const over = Promise.withResolvers<void>();
    const timer = clock.after(Math.max(left_ms - WAY_BACK_MS, left_ms / 2), over.resolve);
    const asked = backends.discover(discovery.backend, {
      stage: (backend, stage) => {
        if (discovery.result !== null) return;
        discovery.stages.set(backend, stage);
        this.#sayLeast(discovery);
      },
      told: (told) => {
        if (discovery.result !== null) return;
        discovery.stages.delete(told.backend);
        discovery.told.set(told.backend, told);
        this.#sayLeast(discovery);
      },
    });
    try {
      await Promise.race([asked, over.promise]);
    } catch (error) {
      log.error({ err: error }, 'Asking the backends for their models failed.');
    }
    timer.cancel();
    const late = [...discovery.stages].map(
      ([backend, stage]): BackendTold => ({ outcome: 'failed', backend, reason: 'timed_out', stage }),
    );
    const results = fitting([...discovery.told.values(), ...late]);
    discovery.result = { type: 'discovery.result', request: discovery.request, results };
    this.#options.post(discovery.result);
  }

  /** How far the one is that is least far: the others wait for it. */
  #sayLeast(discovery: Discovery): void {
    let least: [string, DiscoveryStage] | undefined;
    for (const entry of discovery.stages) {
      if (least === undefined || rank(entry[1]) < rank(least[1])) least = entry;
    }
    if (least !== undefined) this.#say(discovery, least[1], least[0]);
  }

  #say(discovery: Discovery, stage: DiscoveryStage, backend: string | undefined): void {
    const { said, request } = discovery;
    if (said?.stage === stage && said.backend === backend) return;
    discovery.said = {
      type: 'discovery.progress',
      request,
      stage,
      ...(backend === undefined ? {} : { backend }),
    };
    this.#options.post(discovery.said);
  }
}

function rank(stage: DiscoveryStage): number {
  return DISCOVERY_STAGES.indexOf(stage);
}

/** The longest lists are shortened until the message holds all; `models_total` says that there were more. */
function fitting(results: BackendTold[]): BackendTold[] {
  let fit = results;
  const longest = Math.max(0, ...results.map((told) => (told.outcome === 'listed' ? told.models.length : 0)));
  for (let most = longest; Buffer.byteLength(JSON.stringify(fit)) > RESULT_MAX_BYTES && most > 0; ) {
    most >>= 1;
    fit = results.map((told) =>
      told.outcome === 'listed' ? { ...told, models: told.models.slice(0, most) } : told,
    );
  }
  return fit;
}
