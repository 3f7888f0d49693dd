import type { Clock, Log, Timer } from '@flotilla/core';
import type { BackendTold, DiscoveryStage } from '@flotilla/protocol';
import type { Agent } from 'undici';
import type { BackendSettings, Config } from '../config.ts';
import type { BackendTarget } from '../threads.ts';
import { type FindReport, type Found, lookAround, openProbeAgent, USUAL_PORTS } from './find.ts';
import { likelyBase } from './identify.ts';
import type { KindName, ListFailure } from './kind.ts';
import { BackendProbe, type BackendView } from './probe.ts';

/**
 * The backends of this node: those its owner named, which stay whatever happens to them, and those found at the usual
 * ports, which come and go:
 *
 *     (nothing) ──looked, and a model server answers──▶ used ──unreachable for 5 minutes, or another kind answers there──▶ (nothing)
 *
 * Meanwhile a found one that is unreachable stays, and is `down`: a server that restarts keeps its name and pool, and
 * the control plane sees why it serves nothing. `look()` asked for by the operator drops what is unreachable at once.
 */
const LOOK_EVERY_MS = 30_000;
const LOOK_SHORTLY_MS = 1000;
const GONE_AFTER_MS = 5 * 60_000;

/** The settings that `reload` changes while the daemon runs. */
export type BackendConfig = Pick<
  Config,
  'backends' | 'find_backends' | 'slots' | 'probe' | 'idle_timeout_ms' | 'connect_timeout_ms'
>;

export interface BackendSetOptions {
  config: BackendConfig;
  clock: Clock;
  log: Log;
  on_change: () => void;
  on_probe?: (backend: string, probe: 'list' | 'generate', outcome: 'good' | 'failed') => void;
  /** Where to look; tests cannot have the usual ones. */
  ports?: readonly number[];
}

interface Member {
  probe: BackendProbe;
  url: string;
  settings: BackendSettings | null;
  /** What it was when it was found: its name has it. */
  found_kind: KindName | null;
}

/** A backend with everything that the descriptor, the link thread and the status need of it. */
export interface BackendState extends BackendView {
  url: string;
  found: boolean;
  capacity: number;
  capacity_from: 'config' | 'backend' | 'default';
  target: BackendTarget;
}

/** How a discovery goes, backend by backend. */
export interface HearDiscovery {
  stage(backend: string, stage: DiscoveryStage): void;
  told(told: BackendTold): void;
}

/** Where nobody says otherwise: enough to keep a GPU busy, few enough for one that serves in turn. */
const DEFAULT_SLOTS = 4;

export class BackendSet {
  readonly #options: BackendSetOptions;
  readonly #agent: Agent;
  readonly #stopping = new AbortController();
  readonly #members = new Map<string, Member>();
  #config: BackendConfig;
  #ignored: FindReport['ignored'] = [];
  #timer: Timer | null = null;
  #look: Promise<void> | null = null;

  constructor(options: BackendSetOptions) {
    this.#options = options;
    this.#config = options.config;
    this.#agent = openProbeAgent(options.config.connect_timeout_ms);
  }

  /** Resolves when the first look is over; the probes that it began go on. */
  async start(): Promise<void> {
    this.#useConfigured();
    await this.look();
    this.#schedule();
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    this.#timer?.cancel();
    this.#timer = null;
    await Promise.allSettled([this.#look, ...[...this.#members.values()].map(({ probe }) => probe.stop())]);
    await this.#agent.destroy();
  }

  /** New settings: what is no longer named goes, what is new comes, what has changed starts anew. */
  async reconfigure(config: BackendConfig): Promise<void> {
    const before = this.#config;
    this.#config = config;
    for (const [id, member] of this.#members) {
      if (this.#stopped) return;
      const settings = config.backends.find((backend) => configuredId(backend) === id) ?? null;
      const same =
        JSON.stringify(settings) === JSON.stringify(member.settings) && before.probe === config.probe;
      const keep = member.settings === null ? config.find_backends && same : same;
      if (!keep) await this.#drop(id);
    }
    if (this.#stopped) return;
    this.#useConfigured();
    await this.look(true);
    if (!this.#stopped) this.#options.on_change();
  }

  /** Looks at the usual ports, and asks every backend at once. @param forget drop found ones that are unreachable now */
  async look(forget = false): Promise<void> {
    if (forget) await this.#dropGone(0);
    if (this.#stopped) return;
    for (const { probe } of this.#members.values()) if (forget) probe.handle({ type: 'look' });
    this.#look ??= this.#lookAround().finally(() => {
      this.#look = null;
    });
    await this.#look;
  }

  /**
   * Asks one backend, or all with those that can be found now, for their models. Resolves when each has told.
   * @param id undefined: all of them
   */
  async discover(id: string | undefined, hear: HearDiscovery): Promise<void> {
    const asked = new Map<string, Promise<void>>();
    const askNew = () => {
      for (const [name, { probe }] of this.#members) {
        if (!asked.has(name) && (id === undefined || id === name)) asked.set(name, ask(name, probe, hear));
      }
    };
    askNew();
    if (asked.size === 0 || id === undefined) {
      await this.#lookShortly();
      askNew();
    }
    await Promise.all(asked.values());
  }

  /** Something at a usual port that never answers does not hold up those that do. */
  async #lookShortly(): Promise<void> {
    const { clock, log } = this.#options;
    const enough = Promise.withResolvers<void>();
    const timer = clock.after(LOOK_SHORTLY_MS, enough.resolve);
    const looked = this.look().catch((error: unknown) =>
      log.error({ err: error }, 'Looking for backends failed.'),
    );
    await Promise.race([looked, enough.promise]);
    timer.cancel();
  }

  states(): BackendState[] {
    return [...this.#members.values()]
      .map((member) => this.#stateOf(member))
      .sort((a, b) => (a.id < b.id ? -1 : 1));
  }

  get ignored(): FindReport['ignored'] {
    return this.#ignored;
  }

  /** Nothing more is learned by waiting. */
  get settled(): boolean {
    return [...this.#members.values()].every(({ probe }) => probe.settled);
  }

  requestFailed(backend: string, model: string, reason: string): void {
    this.#members.get(backend)?.probe.handle({ type: 'request_failed', model, reason });
  }

  requestServed(backend: string, model: string): void {
    this.#members.get(backend)?.probe.handle({ type: 'request_served', model });
  }

  load(inFlight: ReadonlyMap<string, number>): void {
    for (const [id, { probe }] of this.#members)
      probe.handle({ type: 'load', in_flight: inFlight.get(id) ?? 0 });
  }

  /** From `stop()` on nothing begins any more, whatever was under way: nobody would end it. */
  get #stopped(): boolean {
    return this.#stopping.signal.aborted;
  }

  #schedule(): void {
    if (this.#stopped) return;
    this.#timer = this.#options.clock.after(LOOK_EVERY_MS, () => {
      void this.look().catch((error: unknown) =>
        this.#options.log.error({ err: error }, 'Looking for backends failed.'),
      );
      this.#schedule();
    });
  }

  #useConfigured(): void {
    for (const settings of this.#config.backends) {
      const id = configuredId(settings);
      if (!this.#members.has(id)) this.#add(id, settings.url, settings);
    }
  }

  async #lookAround(): Promise<void> {
    if (!this.#config.find_backends) return;
    await this.#dropGone(GONE_AFTER_MS);
    if (this.#stopped) return;
    const reach = { dispatcher: this.#agent, signal: this.#stopping.signal };
    const report = await lookAround(reach, this.#options.ports ?? USUAL_PORTS, this.#portsInUse());
    if (this.#stopped) return;
    this.#ignored = report.ignored;
    for (const found of report.found) await this.#use(found);
  }

  async #use(found: Found): Promise<void> {
    // The probe of one that has failed for a while finds out itself what the server is now; here only its name follows.
    for (const [id, { url, settings }] of this.#members) {
      if (settings === null && url === found.url && id !== found.id) await this.#drop(id);
    }
    if (this.#stopped) return;
    const taken = this.#members.get(found.id);
    if (taken !== undefined && taken.url === found.url) return;
    const id = taken === undefined ? found.id : `${found.id}-${new URL(found.url).port}`;
    if (this.#members.has(id)) return;
    this.#options.log.info({ backend: id, url: found.url }, 'A backend was found.');
    this.#add(id, found.url, null, found);
    this.#options.on_change();
  }

  #add(id: string, url: string, settings: BackendSettings | null, found?: Found): void {
    const probe = new BackendProbe({
      id,
      address: { url, headers: headersOf(settings) },
      kind: settings?.kind,
      opened: found?.opened,
      probe: settings?.probe ?? this.#config.probe,
      operations: settings?.operations,
      models: settings?.models,
      dispatcher: this.#agent,
      clock: this.#options.clock,
      log: this.#options.log,
      on_change: this.#options.on_change,
      on_probe: (sort, outcome) => this.#options.on_probe?.(id, sort, outcome),
    });
    this.#members.set(id, { probe, url, settings, found_kind: found?.opened.kind ?? null });
    probe.start();
  }

  async #drop(id: string): Promise<void> {
    const member = this.#members.get(id);
    this.#members.delete(id);
    await member?.probe.stop();
  }

  async #dropGone(after_ms: number): Promise<void> {
    for (const [id, { probe, url, settings }] of this.#members) {
      const down_ms = settings === null ? probe.downFor() : null;
      if (down_ms === null || down_ms < after_ms || !probe.seen) continue;
      this.#options.log.info({ backend: id, url }, 'A found backend is gone.');
      await this.#drop(id);
      this.#options.on_change();
    }
  }

  /** A found one that is down, or another than its name says, is looked at too: its place may have been taken. */
  #portsInUse(): Set<number> {
    const ports = new Set<number>();
    for (const { url, settings, probe, found_kind } of this.#members.values()) {
      const { hostname, port, protocol } = new URL(url);
      if (
        !isLoopback(hostname) ||
        (settings === null && (probe.downFor() !== null || probe.kind !== found_kind))
      )
        continue;
      ports.add(Number(port === '' ? (protocol === 'https:' ? 443 : 80) : port));
    }
    return ports;
  }

  #stateOf({ probe, url, settings }: Member): BackendState {
    const view = probe.view();
    const configured = settings?.slots ?? this.#config.slots;
    const idle_timeout_ms = settings?.idle_timeout_ms ?? this.#config.idle_timeout_ms;
    return {
      ...view,
      url,
      found: settings === null,
      capacity: configured ?? view.slots ?? DEFAULT_SLOTS,
      capacity_from: configured !== undefined ? 'config' : view.slots !== undefined ? 'backend' : 'default',
      target: {
        id: view.id,
        base_url: view.base_url,
        pool: view.id,
        headers: headersOf(settings),
        ...(idle_timeout_ms === undefined ? {} : { idle_timeout_ms }),
      },
    };
  }
}

async function ask(backend: string, probe: BackendProbe, hear: HearDiscovery): Promise<void> {
  let stage: DiscoveryStage = 'claimed';
  hear.stage(backend, stage);
  const listed = await probe.discover((reached) => {
    stage = reached;
    hear.stage(backend, stage);
  });
  if (!listed.ok) {
    const { reason, refused } = listed;
    // No connection came about, whatever would have been asked on it.
    hear.told({
      outcome: 'failed',
      backend,
      reason: reasonOf(listed),
      stage: refused ? 'connecting' : stage,
      detail: reason,
    });
    return;
  }
  const { kind, version, models } = probe.view();
  hear.told({
    outcome: 'listed',
    backend,
    kind,
    ...(version === undefined ? {} : { version }),
    models,
    models_total: models.length,
  });
}

function reasonOf({ because }: ListFailure): 'not_authorised' | 'timed_out' | 'backend_down' {
  if (because === 'denied') return 'not_authorised';
  return because === 'silent' ? 'timed_out' : 'backend_down';
}

/** Stable whatever the server turns out to be, and known before it first answers. */
function configuredId(settings: BackendSettings): string {
  const { host, pathname } = new URL(likelyBase(settings.url));
  const path = pathname.replace(/\/v1$/, '');
  return settings.id ?? `${host}${path}`.slice(0, 64);
}

function headersOf(settings: BackendSettings | null): Record<string, string> {
  return settings?.api_key === undefined ? {} : { authorization: `Bearer ${settings.api_key}` };
}

function isLoopback(hostname: string): boolean {
  return hostname === 'localhost' || hostname === '[::1]' || hostname.startsWith('127.');
}
