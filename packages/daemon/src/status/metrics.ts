import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import type { BackendState } from '../backends/backend-set.ts';
import { configuredSlots, offeredSlots } from '../descriptor.ts';
import type { FromLink } from '../threads.ts';
import type { DaemonStatus } from './view.ts';

/** The daemon's own metrics: counted as the link thread tells, gauges read when asked. */
export class Metrics {
  readonly #registry = new Registry();
  readonly #beats: Counter;
  readonly #rtt: Histogram;
  readonly #attempts: Counter<'operation' | 'outcome'>;
  readonly #first_byte: Histogram<'operation'>;
  readonly #total: Histogram<'operation'>;
  readonly #disconnects: Counter;
  readonly #restarts: Counter;
  readonly #fenced: Counter;
  readonly #probes: Counter<'backend' | 'outcome' | 'probe'>;

  constructor(read: () => { status: DaemonStatus; backends: BackendState[] }) {
    const registers = [this.#registry];
    collectDefaultMetrics({
      register: this.#registry,
      prefix: 'flotilla_node_',
      eventLoopMonitoringPrecision: 100,
    });
    const counter = <L extends string>(name: string, help: string, labelNames: L[] = []) =>
      new Counter({ name: `flotilla_node_${name}`, help, labelNames, registers });
    this.#beats = counter('beats_acknowledged_total', 'Beats that the control plane acknowledged.');
    this.#disconnects = counter('link_disconnects_total', 'Times the link closed or could not open.');
    this.#restarts = counter(
      'link_thread_restarts_total',
      'Times the link thread ended unasked and was started again.',
    );
    this.#fenced = counter('attempts_fenced_total', 'Attempts this node gave up because its lease ran out.');
    this.#attempts = counter('attempts_total', 'Attempts that ended here.', ['operation', 'outcome']);
    this.#probes = counter('probes_total', 'Probes of backends.', ['backend', 'probe', 'outcome']);
    const seconds = <L extends string>(name: string, help: string, buckets: number[], labelNames: L[] = []) =>
      new Histogram({ name: `flotilla_node_${name}_seconds`, help, buckets, labelNames, registers });
    this.#rtt = seconds('beat_rtt', 'Round trip of a beat.', [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5]);
    this.#first_byte = seconds('first_byte', "A backend's time to its first body byte.", SPANS, [
      'operation',
    ]);
    this.#total = seconds('attempt', 'Time from an attempt to its end.', SPANS, ['operation']);
    this.#gauges(read);
  }

  count(message: FromLink): void {
    switch (message.type) {
      case 'acked':
        this.#beats.inc();
        this.#rtt.observe(message.rtt_ms / 1000);
        return;
      case 'disconnected':
        this.#disconnects.inc();
        return;
      case 'fenced':
        this.#fenced.inc(message.attempts);
        return;
      case 'load':
        for (const { operation, outcome, first_byte_ms, total_ms } of message.ended) {
          this.#attempts.inc({ operation, outcome });
          if (first_byte_ms !== null) this.#first_byte.observe({ operation }, first_byte_ms / 1000);
          this.#total.observe({ operation }, total_ms / 1000);
        }
        return;
      default:
    }
  }

  restarted(): void {
    this.#restarts.inc();
  }

  probed(backend: string, probe: 'list' | 'generate', outcome: 'good' | 'failed'): void {
    this.#probes.inc({ backend, probe, outcome });
  }

  async text(): Promise<{ type: string; body: string }> {
    return { type: this.#registry.contentType, body: await this.#registry.metrics() };
  }

  #gauges(read: () => { status: DaemonStatus; backends: BackendState[] }): void {
    const gauge = <L extends string>(
      name: string,
      help: string,
      labelNames: L[],
      collect: (gauge: Gauge<L>) => void,
    ) =>
      new Gauge({
        name: `flotilla_node_${name}`,
        help,
        labelNames,
        registers: [this.#registry],
        collect() {
          this.reset(); // backends come and go; a gone one leaves no number behind
          collect(this);
        },
      });
    gauge('link_up', '1 while the link is connected.', [], (set) =>
      set.set(read().status.link.state === 'connected' ? 1 : 0),
    );
    gauge('last_ack_timestamp_seconds', 'When a beat was last acknowledged.', [], (set) => {
      const { last_ack_at } = read().status.link;
      if (last_ack_at !== null) set.set(last_ack_at / 1000);
    });
    gauge('in_flight', 'Attempts that run now.', ['pool'], (set) => {
      for (const { id, in_flight } of read().status.pools) set.set({ pool: id }, in_flight);
    });
    gauge('capacity', 'Attempts that may run at once.', ['pool'], (set) => {
      const { backends } = read();
      const slots = configuredSlots(backends);
      for (const { target, capacity } of backends)
        set.set({ pool: target.pool }, offeredSlots(capacity, slots));
    });
    gauge('backend_health', '1 healthy, 0.5 degraded, 0 down.', ['backend', 'kind'], (set) => {
      for (const { id, kind, health } of read().backends)
        set.set({ backend: id, kind }, LEVEL[health.health]);
    });
  }
}

const SPANS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600];
const LEVEL = { healthy: 1, degraded: 0.5, down: 0 } as const;
