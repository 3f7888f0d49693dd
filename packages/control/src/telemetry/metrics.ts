import type { NodeState, TokenUsage } from '@flotilla/protocol';
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';

/**
 * What the control plane counts, as plain functions: callers do not know Prometheus. Counters are pushed as things
 * happen; what has a present value (queue depth, leases, links) is read from its owner when somebody scrapes, so that
 * it cannot drift and costs the hot path nothing.
 *
 * Label values are bounded: operations, outcomes and states are ours; a model gets a label of its own only when a node
 * offers it, and only the first 200 do. All others share `other`.
 */
export interface Metrics {
  /** An inference request was accepted as a job. Every one ends by `requestEnded`. */
  requestStarted(): void;
  requestEnded(request: EndedRequest): void;
  /** It was refused before it became a job: nothing of it is timed. */
  requestRefused(operation: string, outcome: string): void;
  /** A request got its first offer to a node after this long. */
  queueWaited(model: string, ms: number): void;
  /** `outcome`: `succeeded`, or why the attempt ended: an error code or a scheduler's reason. */
  attemptEnded(outcome: string): void;
  /** A detached job was acknowledged with 202. Every one ends by `detachedEnded`, here or on another replica. */
  detachedAccepted(): void;
  /** `succeeded`, or the error code it ended with. */
  detachedEnded(outcome: string): void;
  beatReceived(): void;
  countsDiffered(): void;
  /** A credential was refused; `surface` is where: `api`, `enrolment`, `link`, `metrics`. */
  authFailed(surface: AuthSurface): void;
  /** The batched writer's statements, see `store/`. */
  storeFlushed: (flush: { rows: number; duration_ms: number; failed: boolean }) => void;
  /** Whose present values a scrape reads. */
  watch(sources: Partial<GaugeSources>): void;
  /** Prometheus text. */
  render(): Promise<string>;
  readonly content_type: string;
}

interface EndedRequest {
  operation: string;
  model: string;
  /** `succeeded`, or the error code it ended with. */
  outcome: string;
  total_ms: number;
  /** Null: the client never got a byte of an answer. */
  first_byte_ms: number | null;
  usage: Pick<TokenUsage, 'prompt_tokens' | 'completion_tokens'>;
}
export type AuthSurface = 'api' | 'enrolment' | 'link' | 'metrics';

interface GaugeSources {
  /** Waiting requests by model; models without any may be left out. */
  queueDepths(): Iterable<[model: string, depth: number]>;
  leases(): number;
  links(): number;
  nodeStates(): Iterable<[state: NodeState, nodes: number]>;
  /** Rows that wait to be written. */
  storeWaiting(): number;
  bodyBytes(): number;
  /** Whether a node offers (or offered) the model: only such a model gets a label of its own. */
  offersModel(model: string): boolean;
}

const MODEL_LABELS = 200;
const OUTCOME_LABELS = 60;
const OTHER = 'other';

/** From a cached embedding to a model that loads first. */
const LATENCY_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600];
const FLUSH_BUCKETS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5];

export function createMetrics(): Metrics {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry, prefix: 'flotilla_' });
  const sources: Partial<GaugeSources> = {};
  const label = boundedLabels(MODEL_LABELS, (model) => sources.offersModel?.(model) ?? true);
  const outcomeLabel = boundedLabels(OUTCOME_LABELS, () => true);
  let in_flight = 0;

  const series = requestSeries(registry);
  const queueWait = queueWaits(registry);
  const count = counters(registry);
  gauges(registry, sources, label, () => in_flight);

  return {
    requestStarted() {
      in_flight += 1;
    },
    requestEnded(request) {
      in_flight -= 1;
      series(request.operation, label(request.model), outcomeLabel(request.outcome)).record(request);
    },
    requestRefused: (operation, outcome) => series(operation, OTHER, outcomeLabel(outcome)).refuse(),
    queueWaited: (model, ms) => queueWait(label(model), ms),
    attemptEnded: (outcome) => count.attempt(outcomeLabel(outcome)),
    detachedAccepted: () => count.detached_accepted.inc(),
    detachedEnded: (outcome) => count.detached_ended.inc({ outcome: outcomeLabel(outcome) }),
    beatReceived: () => count.beats.inc(),
    countsDiffered: () => count.differences.inc(),
    authFailed: (surface) => count.refusals.inc({ surface }),
    storeFlushed({ rows, duration_ms, failed }) {
      count.flush_seconds.observe(duration_ms / 1000);
      if (failed) count.flush_failures.inc();
      else count.flushed_rows.inc(rows);
    },
    watch: (more) => void Object.assign(sources, more),
    render: () => registry.metrics(),
    content_type: registry.contentType,
  };
}

/** A label for each of the first `most` values that are worth one. */
function boundedLabels(most: number, worthy: (value: string) => boolean): (value: string) => string {
  const known = new Set<string>();
  return (value) => {
    if (known.has(value)) return value;
    if (known.size >= most || !worthy(value)) return OTHER;
    known.add(value);
    return value;
  };
}

interface RequestSeries {
  record(request: EndedRequest): void;
  refuse(): void;
}

/** The handles of one (operation, model, outcome) are made once: a request then costs three look-ups. */
function requestSeries(registry: Registry) {
  const labels = ['operation', 'model'] as const;
  const requests = new Counter({
    name: 'flotilla_requests_total',
    help: 'Inference requests that ended, by outcome: succeeded or an error code.',
    labelNames: [...labels, 'outcome'],
    registers: [registry],
  });
  const latency = (name: string, help: string) =>
    new Histogram({ name, help, labelNames: labels, buckets: LATENCY_BUCKETS, registers: [registry] });
  const total = latency(
    'flotilla_request_seconds',
    'From reading a request to the last piece of its answer.',
  );
  const first = latency(
    'flotilla_first_byte_seconds',
    'From reading a request to the first byte of its answer.',
  );

  const tokens = new Counter({
    name: 'flotilla_tokens_total',
    help: 'Tokens of requests that ended, by kind: input or output. Estimates are in it; the books are the usage rows.',
    labelNames: ['model', 'kind'] as const,
    registers: [registry],
  });

  const cache = new Map<string, RequestSeries>();
  return (operation: string, model: string, outcome: string): RequestSeries => {
    const name = `${operation}\n${model}\n${outcome}`;
    let entry = cache.get(name);
    if (entry === undefined) {
      const ended = requests.labels(operation, model, outcome);
      const totals = total.labels(operation, model);
      const firsts = first.labels(operation, model);
      const input = tokens.labels(model, 'input');
      const output = tokens.labels(model, 'output');
      entry = {
        refuse: () => ended.inc(),
        record({ total_ms, first_byte_ms, usage }) {
          ended.inc();
          input.inc(usage.prompt_tokens);
          output.inc(usage.completion_tokens);
          totals.observe(total_ms / 1000);
          if (first_byte_ms !== null) firsts.observe(first_byte_ms / 1000);
        },
      };
      cache.set(name, entry);
    }
    return entry;
  };
}

function queueWaits(registry: Registry) {
  const waits = new Histogram({
    name: 'flotilla_queue_wait_seconds',
    help: 'From accepting a request to its first offer to a node.',
    labelNames: ['model'] as const,
    buckets: LATENCY_BUCKETS,
    registers: [registry],
  });
  const handles = new Map<string, { observe(seconds: number): void }>();
  return (model: string, ms: number): void => {
    let handle = handles.get(model);
    if (handle === undefined) handles.set(model, (handle = waits.labels(model)));
    handle.observe(ms / 1000);
  };
}

function counters(registry: Registry) {
  const registers = [registry];
  const attempts = new Counter({
    name: 'flotilla_attempts_total',
    help: 'Attempts that ended, by outcome.',
    labelNames: ['outcome'] as const,
    registers,
  });
  const handles = new Map<string, { inc(): void }>();
  return {
    attempt(outcome: string): void {
      let handle = handles.get(outcome);
      if (handle === undefined) handles.set(outcome, (handle = attempts.labels(outcome)));
      handle.inc();
    },
    detached_accepted: new Counter({
      name: 'flotilla_detached_jobs_accepted_total',
      help: 'Detached jobs acknowledged by this replica.',
      registers,
    }),
    detached_ended: new Counter({
      name: 'flotilla_detached_jobs_total',
      help: 'Detached jobs that ended by what this replica wrote, by outcome: succeeded or an error code.',
      labelNames: ['outcome'] as const,
      registers,
    }),
    beats: new Counter({ name: 'flotilla_beats_total', help: 'Heartbeats received.', registers }),
    differences: new Counter({
      name: 'flotilla_count_differences_total',
      help: "Times that a node's own count of its work differed.",
      registers,
    }),
    refusals: new Counter({
      name: 'flotilla_auth_failures_total',
      help: 'Credentials refused, by where they were shown.',
      labelNames: ['surface'] as const,
      registers,
    }),
    flushed_rows: new Counter({
      name: 'flotilla_store_rows_total',
      help: 'Rows written by batched statements.',
      registers,
    }),
    flush_failures: new Counter({
      name: 'flotilla_store_flush_failures_total',
      help: 'Batched statements that failed; their rows are sent again.',
      registers,
    }),
    flush_seconds: new Histogram({
      name: 'flotilla_store_flush_seconds',
      help: 'Duration of batched statements.',
      buckets: FLUSH_BUCKETS,
      registers,
    }),
  };
}

function gauges(
  registry: Registry,
  sources: Partial<GaugeSources>,
  label: (model: string) => string,
  inFlight: () => number,
): void {
  const single = (name: string, help: string, read: () => number) =>
    new Gauge({
      name,
      help,
      registers: [registry],
      collect() {
        this.set(read());
      },
    });
  const labelled = (name: string, help: string, by: string, read: () => Iterable<[string, number]>) =>
    new Gauge({
      name,
      help,
      labelNames: [by],
      registers: [registry],
      collect() {
        this.reset();
        for (const [value, amount] of read()) this.inc({ [by]: value }, amount);
      },
    });
  single('flotilla_requests_in_flight', 'Inference requests being served or waiting.', inFlight);
  single('flotilla_leases', 'Attempts that nodes hold a lease on.', () => sources.leases?.() ?? 0);
  single('flotilla_links', 'Open node links.', () => sources.links?.() ?? 0);
  single('flotilla_store_rows_waiting', 'Rows that wait to be written.', () => sources.storeWaiting?.() ?? 0);
  single('flotilla_body_bytes', 'Request bodies held in memory.', () => sources.bodyBytes?.() ?? 0);
  labelled('flotilla_nodes', 'Nodes by state.', 'state', () => sources.nodeStates?.() ?? []);
  labelled('flotilla_queue_depth', 'Waiting requests by model.', 'model', function* () {
    for (const [model, depth] of sources.queueDepths?.() ?? []) yield [label(model), depth];
  });
}
