import { rm } from 'node:fs/promises';
import type { Clock, Log, Timer } from '@flotilla/core';
import { writeFileAtomically } from './atomic-file.ts';
import { BackendSet } from './backends/backend-set.ts';
import { type Config, type ConfigFlags, loadConfig } from './config.ts';
import {
  type ControlAnswer,
  type ControlRequest,
  type ControlSocket,
  openControlSocket,
} from './control-socket.ts';
import { type Described, describeNode } from './descriptor.ts';
import { Discoveries } from './discoveries.ts';
import { HeartbeatFile } from './heartbeat-file.ts';
import { Journal } from './journal/journal.ts';
import { LinkHost } from './link-host.ts';
import { type DaemonEvent, LinkNews } from './link-news.ts';
import { writeRegistry } from './registry-file.ts';
import { type Credential, removeCredential, type StatePaths, writeCredential } from './state-dir.ts';
import { Metrics } from './status/metrics.ts';
import { openStatusServer, type StatusServer } from './status/server.ts';
import { type DaemonStatus, initialLink, readiness, statusView } from './status/view.ts';
import type { FromLink, LinkThreadData } from './threads.ts';

/**
 * The daemon's main thread: it wires the parts and holds what is true of the whole.
 *
 *     starting ──backends seen, heartbeat `running` on disk──▶ running ──signal, verb, or the link thread's `stopping`──▶ stopping ──▶ stopped
 *
 * Moved by this class alone. `stopping`: the heartbeat says so on disk, then the link thread is told to drain; it ends
 * with the thread's `stopped`, with the deadline and five seconds over, or at once when asked a second time. Whatever
 * kills the process, the lock goes with it and the next start begins anew: of inference nothing outlives a daemon but its journal.
 */
export interface DaemonParts {
  paths: StatePaths;
  config: Config;
  credential: Credential;
  control_url: string;
  boot_id: string;
  version: string;
  log: Log;
  clock: Clock;
  link_script: URL;
  /** Read `node.yaml` again, under the flags and environment of the start. */
  sources: { environment: NodeJS.ProcessEnv; flags: ConfigFlags };
  find_ports?: readonly number[] | undefined;
  on_event: (event: DaemonEvent) => void;
}

/** The first descriptor waits so long for the first probes: a node is placeable from its first moment. */
const FIRST_PROBES_MS = 3_000;
/** After the deadline the link thread still has to say farewell. */
const FAREWELL_MS = 5_000;
const PROGRESS_EVERY_MS = 250;
/** The exit code by which a service manager knows that another start would change nothing. */
const UNWANTED = 3;
/** Settings that `reload` applies; the others are read once. */
const RELOADABLE: readonly (keyof Config)[] = [
  'backends',
  'find_backends',
  'slots',
  'probe',
  'idle_timeout_ms',
  'labels',
  'region',
  'drain_timeout_ms',
];

export class Daemon {
  readonly #parts: DaemonParts;
  readonly #progress = new SharedArrayBuffer(4);
  readonly #heartbeat: HeartbeatFile;
  readonly #backends: BackendSet;
  readonly #journal: Journal;
  readonly #link: LinkHost;
  readonly #news: LinkNews;
  readonly #metrics: Metrics;
  readonly #status: DaemonStatus;
  readonly #ended = Promise.withResolvers<number>();
  #config: Config;
  #credential: Credential;
  #credential_written: Promise<void> = Promise.resolve();
  #described: Described;
  #told_targets = '';
  #link_open = false;
  #refreshing = false;
  #first_probes: (() => void) | null = null;
  #deadline: Timer | null = null;
  #drain_until = Number.POSITIVE_INFINITY;
  #stopping: Promise<void> | null = null;
  /** Requests that the stop has cut. */
  #released = 0;

  constructor(parts: DaemonParts) {
    const { paths, config, credential, boot_id, version, log, clock } = parts;
    this.#parts = parts;
    this.#config = config;
    this.#credential = credential;
    this.#status = {
      pid: process.pid,
      boot_id,
      version,
      node_id: credential.node_id,
      name: credential.name,
      state_dir: paths.dir,
      status: 'starting',
      started_at: clock.wall_ms(),
      link: initialLink(parts.control_url),
      pools: [],
      attempts: [],
      cordoned: false,
      operator_drain_ms: null,
      drain: null,
      ignored: [],
      journal: { health: 'healthy' },
    };
    this.#metrics = new Metrics(() => ({ status: this.#status, backends: this.#backends.states() }));
    this.#heartbeat = new HeartbeatFile({
      path: paths.heartbeat,
      registry_path: paths.registry,
      pid: process.pid,
      boot_id,
      stale_after_ms: config.heartbeat_stale_ms,
      progress_seq: () => Atomics.load(new Int32Array(this.#progress), 0),
      clock,
      log,
    });
    this.#backends = new BackendSet({
      config,
      clock,
      log,
      on_change: () => this.#backendsChanged(),
      on_probe: (backend, probe, outcome) => this.#metrics.probed(backend, probe, outcome),
      ...(parts.find_ports === undefined ? {} : { ports: parts.find_ports }),
    });
    this.#journal = new Journal({
      dir: paths.journal,
      node: credential.node_id,
      clock,
      log,
      on_health: (health) => {
        this.#status.journal = health;
        // It is looked at before there is a link thread, which is told with what it starts with.
        this.#link?.post({ type: 'journal_health', health });
      },
    });
    this.#link = new LinkHost({
      script: parts.link_script,
      data: () => this.#linkData(),
      clock,
      log,
      on_message: (message) => this.#news.hear(message),
      on_crash: (reason) => this.#crashed(reason),
    });
    this.#news = new LinkNews({
      status: this.#status,
      heartbeat: this.#heartbeat,
      backends: this.#backends,
      discoveries: new Discoveries({
        backends: this.#backends,
        post: (message) => this.#link.post({ type: 'discovery', message }),
        clock,
        log,
      }),
      journal: this.#journal,
      metrics: this.#metrics,
      clock,
      log,
      on_event: parts.on_event,
      on_stopping: (message) => this.#refused(message),
      on_stopped: (message) => this.#stopped(message),
    });
    this.#described = this.#describe();
  }

  /** Runs until it has stopped. @returns the process's exit code */
  async run(): Promise<number> {
    const { paths, boot_id, clock } = this.#parts;
    const progress = new Int32Array(this.#progress);
    const alive = setInterval(() => Atomics.add(progress, 0, 1), PROGRESS_EVERY_MS);
    let server: StatusServer | null = null;
    let socket: ControlSocket | null = null;
    try {
      await this.#heartbeat.starting();
      await writeRegistry(paths.registry, { pid: process.pid, boot_id, agents: [] }, clock.wall_ms());
      server = await this.#openStatus();
      socket = await openControlSocket(paths.control, (request) => this.#obey(request));
      await this.#firstLook();
      await this.#openLink();
      return await this.#ended.promise;
    } finally {
      clearInterval(alive);
      this.#deadline?.cancel();
      await this.#stopping;
      await this.#link.end();
      await this.#journal.close();
      await this.#backends.stop();
      this.#status.status = 'stopped';
      await server?.close();
      await rm(paths.status, { force: true });
      await this.#heartbeat.stopped();
      await socket?.close();
    }
  }

  /** Stops after what runs; asked again, at once. */
  signalled(reason: string): void {
    if (this.#stopping !== null) return this.stopNow(reason);
    void this.stop(reason, this.#config.drain_timeout_ms);
  }

  stopNow(reason: string): void {
    this.#parts.log.warn({ reason }, 'Stopping at once; running work is lost.');
    this.#released = this.#atWork();
    void this.#stop(reason, 0).then(() => this.#ended.resolve(1));
  }

  /** Drains and ends; a later call may only bring the deadline nearer. Resolves when the daemon has ended its work. */
  async stop(reason: string, deadline_ms: number): Promise<number> {
    const until = this.#parts.clock.now_ms() + deadline_ms;
    await this.#stop(reason, deadline_ms);
    if (!this.#link.up) this.#ended.resolve(0);
    else if (until < this.#drain_until) this.#drain(reason, until);
    return this.#ended.promise;
  }

  async reload(): Promise<{ needs_restart: string[] }> {
    const config = await loadConfig(this.#parts.paths.config, this.#parts.sources);
    const changed = (Object.keys(config) as (keyof Config)[]).filter(
      (key) => JSON.stringify(config[key]) !== JSON.stringify(this.#config[key]),
    );
    const needs_restart = changed.filter((key) => !RELOADABLE.includes(key));
    const kept = Object.fromEntries(needs_restart.map((key) => [key, this.#config[key]]));
    this.#config = { ...config, ...kept };
    await this.#backends.reconfigure(this.#config);
    this.#parts.log.info({ changed, needs_restart }, 'Settings were read again.');
    return { needs_restart };
  }

  async #openStatus(): Promise<StatusServer> {
    const { paths, config, log, boot_id, on_event } = this.#parts;
    const server = await openStatusServer(config.status_port, {
      ready: () => readiness(this.#status, this.#backends.states()),
      status: () => this.#view(),
      metrics: () => this.#metrics.text(),
    });
    const place = { port: server.port, url: `http://127.0.0.1:${server.port}`, pid: process.pid, boot_id };
    await writeFileAtomically(paths.status, `${JSON.stringify(place, null, 2)}\n`);
    const taken = config.status_port !== 0 && server.port !== config.status_port;
    log.info(
      { url: place.url },
      taken ? `Port ${config.status_port} is taken; the status is elsewhere.` : 'The status server listens.',
    );
    on_event({ type: 'status_listening', port: server.port });
    return server;
  }

  async #firstLook(): Promise<void> {
    const { clock, log } = this.#parts;
    const waited = Promise.withResolvers<void>();
    const timer = clock.after(FIRST_PROBES_MS, waited.resolve);
    const looked = this.#backends.start().then(() => {
      this.#first_probes = waited.resolve;
      this.#backendsChanged();
    });
    looked.catch((error: unknown) => log.error({ err: error }, 'Looking for backends failed.'));
    // A stop meanwhile is not kept waiting; the look ends with the backends.
    await Promise.race([waited.promise, this.#ended.promise]);
    timer.cancel();
    this.#first_probes = null;
    const states = this.#backends.states();
    if (states.length === 0) {
      log.warn({}, 'No model server was found; looking again every 30 s. Name one with --backend URL.');
    }
    const backends = states.map(({ id, kind, health, models }) => ({
      id,
      kind,
      health: health.health,
      models: models.length,
    }));
    this.#parts.on_event({ type: 'backends', backends });
  }

  async #openLink(): Promise<void> {
    if (this.#stopping !== null) return;
    await this.#heartbeat.running();
    if (this.#stopping !== null) return;
    this.#status.status = 'running';
    this.#tellLink(); // nobody listens yet: it only brings up to date what the thread starts with
    this.#link_open = true;
    this.#link.start();
  }

  #linkData(): LinkThreadData {
    const { control_url, boot_id, version, config } = this.#parts;
    return {
      control_url,
      credential: this.#credential.credential,
      boot_id,
      version,
      ...this.#described,
      backends: this.#backends.states().map(({ target }) => target),
      progress: this.#progress,
      connect_timeout_ms: config.connect_timeout_ms,
      journal: this.#journal.entries(),
      journal_health: this.#status.journal,
    };
  }

  #describe(): Described {
    const { labels, region } = this.#config;
    return describeNode({
      name: this.#status.name,
      labels,
      region,
      version: this.#parts.version,
      backends: this.#backends.states(),
    });
  }

  /** Several changes of one moment travel together. */
  #backendsChanged(): void {
    if (this.#refreshing) return;
    this.#refreshing = true;
    queueMicrotask(() => {
      this.#refreshing = false;
      this.#status.ignored = this.#backends.ignored;
      if (this.#backends.settled) this.#first_probes?.();
      if (this.#link_open) this.#tellLink();
    });
  }

  #tellLink(): void {
    const before = this.#described;
    const targets = this.#backends.states().map(({ target }) => target);
    this.#described = this.#describe();
    const { descriptor_hash, health, cut } = this.#described;
    if (cut.length > 0 && cut.join() !== before.cut.join()) {
      this.#parts.log.warn({ cut }, 'Not all that is configured here can be offered.');
    }
    const same = descriptor_hash === before.descriptor_hash && JSON.stringify(targets) === this.#told_targets;
    this.#told_targets = JSON.stringify(targets);
    if (!same) this.#link.post({ type: 'descriptor', ...this.#described, backends: targets });
    else if (JSON.stringify(health) !== JSON.stringify(before.health)) {
      this.#link.post({ type: 'health', health });
    }
  }

  /** A rotated credential: on disk first, then the link is made anew with it; work and streams go on. */
  async #renew(credential: string): Promise<ControlAnswer> {
    // What is leaving must not find its credential on disk again.
    if (this.#stopping !== null) {
      return {
        ok: false,
        code: 'stopping',
        message: 'The daemon is stopping; hand it over when it has ended.',
      };
    }
    const renewed = { ...this.#credential, credential };
    const written = this.#credential_written.then(() => writeCredential(this.#parts.paths, renewed));
    this.#credential_written = written.catch(() => {});
    await written;
    this.#credential = renewed;
    this.#parts.log.info({}, 'A new credential was handed over; the link is made anew with it.');
    this.#link.post({ type: 'credential', credential });
    return { ok: true, name: this.#status.name, in_use: true };
  }

  /** The thread holds on to its work until it is told to drain. */
  #refused({ why, message }: Extract<FromLink, { type: 'stopping' }>): void {
    this.#parts.log.error({ why }, `This node stops for good: ${message}`);
    void this.#stop(why, 0).then(() => this.#drain(why, this.#parts.clock.now_ms()));
  }

  #stopped({ why, released, kept }: Extract<FromLink, { type: 'stopped' }>): void {
    this.#released = released;
    if (kept > 0) {
      this.#parts.log.warn(
        { kept },
        'Results were not acknowledged: the next start of this node delivers them.',
      );
    }
    if (why === 'drained') {
      if (released === 0) this.#parts.log.info({}, 'Drained and deregistered.');
      else this.#parts.log.warn({ released }, 'Deregistered before all work had ended: the rest was cut.');
      this.#ended.resolve(0);
      return;
    }
    void this.#stop(why, 0).then(() => this.#ended.resolve(UNWANTED));
  }

  /** While stopping, a new thread would only register to deregister: what the old one had is lost either way. */
  #crashed(reason: string): void {
    if (this.#stopping !== null) this.#released = this.#atWork();
    this.#news.crashed(reason);
    if (this.#stopping !== null) this.#ended.resolve(1);
  }

  /** As the link thread told it last. */
  #atWork(): number {
    return this.#status.attempts.filter(({ state }) => state !== 'released').length;
  }

  /** `stopping` is on disk before anything is let go. */
  #stop(reason: string, deadline_ms: number): Promise<void> {
    if (this.#stopping === null) {
      this.#status.status = 'stopping';
      this.#status.drain = { reason, deadline_at: this.#parts.clock.wall_ms() + deadline_ms };
      this.#parts.log.info({ reason, deadline_ms }, 'Stopping: running work may finish until the deadline.');
      this.#parts.on_event({ type: 'stopping', reason, deadline_ms });
      this.#stopping = this.#heartbeat.stopping();
    }
    return this.#stopping;
  }

  #drain(reason: string, until: number): void {
    const { clock, log } = this.#parts;
    const deadline_ms = Math.max(0, until - clock.now_ms());
    this.#drain_until = until;
    this.#status.drain = { reason, deadline_at: clock.wall_ms() + deadline_ms };
    this.#link.post({ type: 'drain', deadline_ms, reason });
    this.#deadline?.cancel();
    this.#deadline = clock.after(deadline_ms + FAREWELL_MS, () => {
      log.error({}, 'The link thread did not end in time.');
      this.#released = this.#atWork();
      this.#ended.resolve(1);
    });
  }

  async #obey(request: ControlRequest): Promise<ControlAnswer> {
    switch (request.verb) {
      case 'status':
        return { ok: true, ...this.#view() };
      case 'drain': {
        const deadline_ms = request.deadline_ms ?? this.#config.drain_timeout_ms;
        const ended = this.stop('drain', deadline_ms);
        if (request.wait !== true) return { ok: true, draining: true, deadline_ms };
        const code = await ended;
        return { ok: true, drained: code === 0 && this.#released === 0, released: this.#released };
      }
      case 'leave': {
        const connected = this.#status.link.state === 'connected';
        const code = await this.stop('leave', request.deadline_ms ?? this.#config.drain_timeout_ms);
        await this.#credential_written;
        await removeCredential(this.#parts.paths);
        // Its results were for the fleet that it has left.
        await this.#journal.destroy();
        return {
          ok: true,
          left: true,
          deregistered: connected && code === 0,
          released: this.#released,
        };
      }
      case 'reload': {
        const { needs_restart } = await this.reload();
        return { ok: true, needs_restart, backends: this.#view()['backends'] };
      }
      case 'credential':
        return this.#renew(request.credential);
    }
  }

  #view(): Record<string, unknown> {
    return statusView(this.#status, this.#backends.states(), this.#parts.clock.wall_ms());
  }
}
