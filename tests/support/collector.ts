import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

/** What takes OTLP in JSON over HTTP, and keeps it. */
export interface Collector {
  readonly url: string;
  readonly spans: ReceivedSpan[];
  /** Everything as it came, to look for what must not be in it. */
  text(): string;
  close(): Promise<void>;
}

export interface ReceivedSpan {
  name: string;
  /** 1 internal, 2 server, 3 client. */
  kind: number;
  trace_id: string;
  span_id: string;
  parent: string | undefined;
  start_ms: number;
  end_ms: number;
  attributes: Record<string, unknown>;
  events: string[];
  /** 2: error. */
  status: number;
  service: unknown;
}

interface Wire {
  resourceSpans: {
    resource: { attributes: Attribute[] };
    scopeSpans: { spans: WireSpan[] }[];
  }[];
}
interface WireSpan {
  name: string;
  kind: number;
  traceId: string;
  spanId: string;
  parentSpanId?: string;
  startTimeUnixNano: string;
  endTimeUnixNano: string;
  attributes: Attribute[];
  events: { name: string }[];
  status: { code?: number };
}
interface Attribute {
  key: string;
  value: Record<string, unknown>;
}

export async function startCollector(): Promise<Collector> {
  const bodies: string[] = [];
  const spans: ReceivedSpan[] = [];
  const server = createServer((request, response) => void take(request, response));
  async function take(request: IncomingMessage, response: ServerResponse): Promise<void> {
    let text = '';
    for await (const part of request.setEncoding('utf8')) text += part as string;
    if (request.method === 'POST' && request.url === '/v1/traces') {
      bodies.push(text);
      spans.push(...spansOf(JSON.parse(text) as Wire));
    }
    response.setHeader('content-type', 'application/json');
    response.end('{}');
  }
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    spans,
    text: () => bodies.join('\n'),
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

function spansOf({ resourceSpans }: Wire): ReceivedSpan[] {
  return resourceSpans.flatMap(({ resource, scopeSpans }) =>
    scopeSpans
      .flatMap(({ spans }) => spans)
      .map((span) => ({
        name: span.name,
        kind: span.kind,
        trace_id: span.traceId,
        span_id: span.spanId,
        parent: span.parentSpanId,
        start_ms: Number(span.startTimeUnixNano) / 1e6,
        end_ms: Number(span.endTimeUnixNano) / 1e6,
        attributes: valuesOf(span.attributes),
        events: span.events.map(({ name }) => name),
        status: span.status.code ?? 0,
        service: valuesOf(resource.attributes)['service.name'],
      })),
  );
}

function valuesOf(attributes: Attribute[]): Record<string, unknown> {
  return Object.fromEntries(attributes.map(({ key, value }) => [key, Object.values(value)[0]]));
}
