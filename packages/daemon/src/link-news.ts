import type { Clock, Log } from '@flotilla/core';
import type { BackendSet } from './backends/backend-set.ts';
import type { Discoveries } from './discoveries.ts';
import type { HeartbeatFile } from './heartbeat-file.ts';
import type { Journal } from './journal/journal.ts';
import type { Metrics } from './status/metrics.ts';
import type { DaemonStatus } from './status/view.ts';
import type { FromLink } from './threads.ts';

/** What a command in the foreground tells the person in front of it. */
export type DaemonEvent =
  | { type: 'status_listening'; port: number }
  | { type: 'backends'; backends: { id: string; kind: string; health: string; models: number }[] }
  | { type: 'connected'; name: string; node_id: string; url: string }
  | { type: 'disconnected'; reason: string }
  | { type: 'stopping'; reason: string; deadline_ms: number };

/**
 * What the link thread tells, brought to where it is needed: the status, the heartbeat file, the metrics, the probes,
 * the log and the command in the foreground. It decides nothing; the end of the thread is `daemon.ts`'s business.
 */
export interface LinkNewsOptions {
  status: DaemonStatus;
  heartbeat: HeartbeatFile;
  backends: BackendSet;
  discoveries: Discoveries;
  journal: Journal;
  metrics: Metrics;
  clock: Clock;
  log: Log;
  on_event: (event: DaemonEvent) => void;
  on_stopping: (message: Message<'stopping'>) => void;
  on_stopped: (message: Message<'stopped'>) => void;
}

type Message<T extends FromLink['type']> = Extract<FromLink, { type: T }>;

export class LinkNews {
  readonly #options: LinkNewsOptions;

  constructor(options: LinkNewsOptions) {
    this.#options = options;
  }

  hear(message: FromLink): void {
    const { backends, discoveries, journal, log, metrics, status } = this.#options;
    metrics.count(message);
    switch (message.type) {
      case 'connected':
        return this.#connected(message);
      case 'disconnected':
        return this.#disconnected(message);
      case 'acked':
        return this.#acked(message);
      case 'load':
        status.pools = message.pools;
        status.attempts = message.attempts;
        return backends.load(new Map(message.pools.map(({ id, in_flight }) => [id, in_flight])));
      case 'backend_failed':
        return backends.requestFailed(message.backend, message.model, message.reason);
      case 'backend_served':
        return backends.requestServed(message.backend, message.model);
      case 'discovery_asked':
        return discoveries.asked(message.request);
      case 'discovery_acknowledged':
        return discoveries.acknowledged(message.request);
      case 'journal_keep':
        return journal.keep(message.entry);
      case 'journal_drop':
        return journal.drop(message);
      case 'fenced':
        return log.warn(
          { attempts: message.attempts },
          'The lease ran out unacknowledged; its attempts were given up.',
        );
      case 'stopping':
        return this.#stopping(message);
      case 'stopped':
        return this.#stopped(message);
    }
  }

  crashed(reason: string): void {
    const { heartbeat, metrics, status } = this.#options;
    status.link.state = 'disconnected';
    status.link.reason = `The link thread crashed: ${reason.split('\n')[0]}`;
    status.link.connected_at = null;
    status.link.restarts += 1;
    status.attempts = [];
    status.pools = [];
    heartbeat.link('disconnected');
    metrics.restarted();
  }

  #connected({ url, epoch, node_id, name, heartbeat_ms }: Message<'connected'>): void {
    const { clock, heartbeat, log, on_event, status } = this.#options;
    const { link } = status;
    const connected_at = clock.wall_ms();
    Object.assign(link, {
      state: 'connected',
      url,
      epoch,
      heartbeat_ms,
      connected_at,
      reason: null,
      retry_at: null,
    });
    status.name = name;
    heartbeat.link('connected');
    log.info({ url, node: name, epoch }, 'Connected to the control plane.');
    on_event({ type: 'connected', name, node_id, url });
  }

  #disconnected({ reason, retry_in_ms }: Message<'disconnected'>): void {
    const { clock, heartbeat, log, on_event, status } = this.#options;
    const { link } = status;
    // A long outage is one line, not one for each try.
    const again = link.state === 'disconnected' && link.reason === reason;
    const retry_at = clock.wall_ms() + retry_in_ms;
    Object.assign(link, { state: 'disconnected', reason, retry_at, connected_at: null });
    heartbeat.link('disconnected');
    if (again) return log.debug({ reason }, 'The link is still down.');
    log.warn({ url: link.url, reason, retry_in_ms: Math.round(retry_in_ms) }, 'The link is down.');
    on_event({ type: 'disconnected', reason });
  }

  #acked({ at, rtt_ms, cordoned, drain_ms, warnings }: Message<'acked'>): void {
    const { heartbeat, log, status } = this.#options;
    Object.assign(status.link, { last_ack_at: at, rtt_ms, warnings });
    status.operator_drain_ms = drain_ms;
    if (status.cordoned !== cordoned) {
      log.info({}, cordoned ? 'An operator cordoned this node.' : 'This node takes work again.');
    }
    status.cordoned = cordoned;
    heartbeat.acked(at);
  }

  #stopping(message: Message<'stopping'>): void {
    const { heartbeat, on_stopping, status } = this.#options;
    on_stopping(message);
    Object.assign(status.link, { state: 'disconnected', reason: message.message, connected_at: null });
    heartbeat.link('disconnected');
  }

  #stopped(message: Message<'stopped'>): void {
    const { heartbeat, on_stopped, status } = this.#options;
    status.link.state = 'stopped';
    status.link.reason = message.message;
    heartbeat.link('disconnected');
    on_stopped(message);
  }
}
