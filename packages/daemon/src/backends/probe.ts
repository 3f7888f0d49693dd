import type { Clock, Log, Timer } from '@flotilla/core';
import type { BackendHealth, DiscoveryStage, Health, Model, Operation } from '@flotilla/protocol';
import type { Dispatcher } from 'undici';
import { asker } from './ask.ts';
import { type Address, identify, likelyBase, type Opened } from './identify.ts';
import { failed, type KindName, type Listed, type Listing } from './kind.ts';
import { model, operationsByName } from './model-list.ts';
import {
  healthOf,
  initialProbeState,
  nextTick,
  operationsOf,
  type ProbeEffect,
  type ProbeEvent,
  type ProbeState,
  stepProbe,
} from './probe-rules.ts';
import { prove } from './prove.ts';

/**
 * One backend under probe: the I/O and the timer around `probe-rules.ts`. It lives from its finding until it vanishes
 * or the daemon stops; `stop()` ends its questions and leaves no timer.
 */
export interface BackendProbeOptions {
  id: string;
  address: Address;
  /** The kind that its owner named. */
  kind?: KindName | undefined;
  /** Already identified, by the look that found it. */
  opened?: Opened | undefined;
  probe?: 'generate' | 'list' | undefined;
  operations?: Operation[] | undefined;
  /** Those that its owner named: they are served whether or not it lists them. */
  models?: readonly string[] | undefined;
  dispatcher: Dispatcher;
  clock: Clock;
  log: Log;
  /** Something of what `view` says is different. */
  on_change: () => void;
  on_probe?: ((probe: 'list' | 'generate', outcome: 'good' | 'failed') => void) | undefined;
}

export interface BackendView {
  id: string;
  kind: string;
  version: string | undefined;
  slots: number | undefined;
  base_url: string;
  models: Model[];
  health: BackendHealth;
}

/** Somebody who asked for the list, and is told by a question that began after that. */
interface Curious {
  after: number;
  stage: (stage: DiscoveryStage) => void;
  told: (listed: Listed) => void;
}

/** After so many failures the server at this address may have become another: find out anew what it is. */
const IDENTIFY_AFTER = 2;
const IDENTIFY_EVERY_MS = 60_000;
const NO_LONGER_USED = 'This node uses it no longer.';

export class BackendProbe {
  readonly id: string;
  readonly #options: BackendProbeOptions;
  readonly #stopping = new AbortController();
  readonly #asking = new Set<Promise<void>>();
  readonly #curious = new Set<Curious>();
  /** How many lists were asked for so far. */
  #lists = 0;
  #state: ProbeState;
  #opened: Opened | null;
  #facts: Listing | null = null;
  #timer: Timer | null = null;
  #said = '';
  /** Its health as the log has it last. */
  #logged: Health | null = null;
  #down_since: number | null;
  #identified_at: number;

  constructor(options: BackendProbeOptions) {
    this.id = options.id;
    this.#options = options;
    this.#opened = options.opened ?? null;
    const now = options.clock.now_ms();
    this.#identified_at = now;
    this.#down_since = now;
    this.#state = initialProbeState(options.probe ?? this.#probeByPlace(), now);
  }

  start(): void {
    this.handle({ type: 'tick' });
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    this.#timer?.cancel();
    this.#timer = null;
    this.#tell(failed(NO_LONGER_USED));
    await Promise.allSettled(this.#asking);
  }

  /**
   * What the server tells when it is asked now. A question under way may have been answered before somebody's model was
   * there, so it counts only when it fails.
   */
  discover(stage: (stage: DiscoveryStage) => void): Promise<Listed> {
    if (this.#stopping.signal.aborted) return Promise.resolve(failed(NO_LONGER_USED));
    const { promise, resolve } = Promise.withResolvers<Listed>();
    this.#curious.add({ after: this.#lists, stage, told: resolve });
    this.handle({ type: 'look' });
    return promise;
  }

  #tell(listed: Listed): void {
    for (const curious of this.#curious) {
      if (listed.ok && curious.after >= this.#lists) continue;
      this.#curious.delete(curious);
      curious.told(listed);
    }
  }

  #reached(stage: DiscoveryStage): void {
    for (const curious of this.#curious) if (curious.after < this.#lists) curious.stage(stage);
  }

  handle(event: ProbeEvent): void {
    if (this.#stopping.signal.aborted) return;
    if (event.type === 'load' && event.in_flight === this.#state.in_flight) return; // said with every beat
    const { clock } = this.#options;
    const { state, effects } = stepProbe(this.#state, event, clock.now_ms());
    this.#state = state;
    const down = state.list.state === 'down' || state.list.state === 'unseen';
    this.#down_since = down ? (this.#down_since ?? clock.now_ms()) : null;
    for (const effect of effects) this.#ask(effect);
    this.#sayChanges();
    this.#schedule();
  }

  view(): BackendView {
    return {
      id: this.id,
      kind: this.#facts?.calls_itself ?? this.#opened?.kind ?? this.#options.kind ?? 'unknown',
      version: this.#facts?.version,
      slots: this.#facts?.slots,
      base_url: this.#opened?.base_url ?? likelyBase(this.#options.address.url),
      models: [...this.#state.models.values()].map((model) => ({
        ...model.facts,
        operations: this.#options.operations ?? operationsOf(model),
      })),
      health: { id: this.id, ...healthOf(this.#state) },
    };
  }

  /** For how long its list has not been good; `null` when it is. */
  downFor(): number | null {
    return this.#down_since === null ? null : this.#options.clock.now_ms() - this.#down_since;
  }

  get kind(): KindName | null {
    return this.#opened?.kind ?? null;
  }

  /** It has been asked at least once. */
  get seen(): boolean {
    return this.#state.list.state !== 'unseen';
  }

  /** Every model has been proved or given up on once: nothing more is learned by waiting. */
  get settled(): boolean {
    const { list, generating, models } = this.#state;
    if (list.state === 'unseen') return false;
    return (
      generating === null &&
      ![...models.values()].some((model) => model.proof === 'unproved' && model.due !== null)
    );
  }

  #probeByPlace(): 'generate' | 'list' {
    const { address, kind } = this.#options;
    // A server behind https that is none of the local kinds is most likely somebody's paid API: no token is spent there unasked.
    const local = kind !== undefined && kind !== 'openai';
    return local || !address.url.startsWith('https:') ? 'generate' : 'list';
  }

  #ask(effect: ProbeEffect): void {
    const asking = (effect.do === 'list' ? this.#list() : this.#generate(effect.model, effect.operations))
      .catch((error: unknown) => {
        // A bug of ours must not end all probing without a word.
        this.#options.log.error({ backend: this.id, err: error }, 'A probe failed unexpectedly.');
        const reason = `The probe failed: ${(error as Error).message}`;
        if (effect.do === 'list') {
          this.handle({ type: 'list_failed', reason, refused: false });
          this.#tell(failed(reason));
        } else
          this.handle({ type: 'generate_failed', model: effect.model, reason, refused: false, busy: false });
      })
      .finally(() => this.#asking.delete(asking));
    this.#asking.add(asking);
  }

  async #list(): Promise<void> {
    this.#lists += 1;
    const listed = await this.#listing();
    this.#options.on_probe?.('list', listed.ok ? 'good' : 'failed');
    if (listed.ok) this.#facts = listed.listing;
    const models = this.#withNamed(listed);
    if (models === null) {
      const { reason, refused } = listed as Extract<Listed, { ok: false }>;
      this.handle({ type: 'list_failed', reason, refused });
    } else {
      const loads_on_demand = listed.ok ? this.#loadsOnDemand(listed.listing) : models.length > 1;
      this.handle({ type: 'listed', models, loads_on_demand });
    }
    // Last, so that the state is what was told.
    this.#tell(listed);
  }

  async #listing(): Promise<Listed> {
    if (this.#opened === null || this.#mayBeAnother(this.#opened)) {
      this.#reached('identifying');
      const reach = { dispatcher: this.#options.dispatcher, signal: this.#stopping.signal };
      const identified = await identify(this.#options.address, reach, this.#options.kind);
      if (!identified.ok) return identified;
      this.#opened = identified.opened;
      this.#identified_at = this.#options.clock.now_ms();
    }
    this.#reached('listing');
    return this.#opened.list();
  }

  /** The list with what its owner named beside it; that alone where the server answers, but not with a list. */
  #withNamed(listed: Listed): Model[] | null {
    const { models: named = [] } = this.#options;
    const told = listed.ok ? listed.listing.models : [];
    const answers = listed.ok || listed.because === 'denied' || listed.because === 'no_list';
    if (!answers || (!listed.ok && named.length === 0)) return null;
    const unlisted = named.filter((id) => !told.some((entry) => entry.id === id));
    return [...told, ...unlisted.map((id) => model(id, operationsByName(id), {}))];
  }

  /** The kinds know their own; a server of none may have become any. */
  #mayBeAnother({ kind }: Opened): boolean {
    if (this.#options.kind !== undefined) return false;
    const { state, failures } = this.#state.list;
    const age_ms = this.#options.clock.now_ms() - this.#identified_at;
    return (
      state === 'down' || failures >= IDENTIFY_AFTER || (kind === 'openai' && age_ms >= IDENTIFY_EVERY_MS)
    );
  }

  /** Its owner knows better whether a server without a kind swaps its models. */
  #loadsOnDemand(listing: Listing): boolean {
    return (
      listing.loads_on_demand && !(this.#opened?.kind === 'openai' && this.#options.probe === 'generate')
    );
  }

  async #generate(model: string, operations: Operation[]): Promise<void> {
    const api = asker({
      base_url: this.#opened?.base_url ?? likelyBase(this.#options.address.url),
      headers: this.#options.address.headers,
      dispatcher: this.#options.dispatcher,
      signal: this.#stopping.signal,
    });
    const proof = await prove(api, model, this.#options.operations ?? operations);
    this.#options.on_probe?.('generate', proof.outcome === 'failed' ? 'failed' : 'good');
    if (proof.outcome === 'good')
      return this.handle({ type: 'generated', model, operation: proof.operation });
    if (proof.outcome === 'unclear') return this.handle({ type: 'generate_unclear', model });
    const { reason, refused, timeout } = proof;
    // Too slow an answer says that a busy server is busy, and that an idle one is ill.
    const busy = proof.busy || (timeout && this.#state.in_flight > 0);
    this.handle({ type: 'generate_failed', model, reason, refused, busy });
  }

  #sayChanges(): void {
    const view = this.view();
    const says = JSON.stringify(view);
    if (says === this.#said) return;
    this.#said = says;
    if (this.seen && this.#logged !== view.health.health) this.#logHealth(view);
    this.#options.on_change();
  }

  #logHealth({ id, kind, base_url, health, models }: BackendView): void {
    this.#logged = health.health;
    const fields = {
      backend: id,
      kind,
      url: base_url,
      ...(health.reason === undefined ? {} : { reason: health.reason }),
    };
    if (health.health === 'healthy')
      this.#options.log.info({ ...fields, models: models.length }, 'The backend is healthy.');
    else this.#options.log.warn(fields, `The backend is ${health.health}.`);
  }

  #schedule(): void {
    this.#timer?.cancel();
    const { clock } = this.#options;
    const at = nextTick(this.#state);
    this.#timer =
      at === Number.POSITIVE_INFINITY
        ? null
        : clock.after(Math.max(0, at - clock.now_ms()), () => this.handle({ type: 'tick' }));
  }
}
