import type { Log } from '@flotilla/core';
import { tracesOn } from './spans.ts';
import type { Traces } from './traces.ts';

/**
 * Sends spans to a collector, as OTLP in JSON over HTTP. The SDK is loaded only for this. Spans wait in its bounded
 * queue, and are dropped where a collector does not keep up: no request ever waits for one.
 */
export interface OtlpOptions {
  /** Without the path of a signal: `http://127.0.0.1:4318`. */
  endpoint: string;
  /** Of the traces that begin here; one that a client began is kept or left out as the client says. */
  ratio: number;
  public_url: string | undefined;
  replica: string;
  log: Log;
  wall_ms: () => number;
}

export interface Otlp {
  traces: Traces;
  /** Sends what waits, for a moment; the rest is lost. */
  close(): Promise<void>;
}

const SEND_EVERY_MS = 1000;
/** A stop does not wait longer for a collector that is away. */
const LAST_SPANS_MS = 2000;

export async function startOtlp(options: OtlpOptions): Promise<Otlp> {
  const { endpoint, ratio, log, replica } = options;
  const sdk = await import('@opentelemetry/sdk-trace');
  const { OTLPTraceExporter } = await import('@opentelemetry/exporter-trace-otlp-http');
  const { detectResources, envDetector, resourceFromAttributes } = await import('@opentelemetry/resources');

  const exporter = new OTLPTraceExporter({ url: `${endpoint.replace(/\/+$/, '')}/v1/traces` });
  const send = exporter.export.bind(exporter);
  let failing = false;
  exporter.export = (spans, done) =>
    send(spans, (result) => {
      const failed = result.code !== 0;
      if (failed && !failing) log.warn({ error: result.error }, 'Traces cannot be sent; they are dropped.');
      if (!failed && failing) log.info({}, 'Traces are sent again.');
      failing = failed;
      done(result);
    });
  const own = resourceFromAttributes({ 'service.name': 'flotilla', 'service.instance.id': replica });
  const provider = new sdk.TracerProvider({
    // What the environment says of the service (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) wins.
    resource: own.merge(detectResources({ detectors: [envDetector] })),
    sampler: new sdk.ParentBasedSampler({ root: new sdk.TraceIdRatioBasedSampler(ratio) }),
    spanProcessors: [new sdk.BatchSpanProcessor({ exporter, scheduledDelayMillis: SEND_EVERY_MS })],
  });
  return {
    traces: tracesOn(provider.getTracer('flotilla'), options.public_url, options.wall_ms),
    async close() {
      const late = new Promise<void>((resolve) => setTimeout(resolve, LAST_SPANS_MS).unref());
      await Promise.race([provider.shutdown().catch(() => undefined), late]);
    },
  };
}
