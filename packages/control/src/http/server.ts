import fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify';
import type { Clock, Log, Random, Store } from '@flotilla/core';
import { FlotillaError, ROUTES } from '@flotilla/protocol';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import type { Keys } from '../accounts/keys.ts';
import type { Slowdown } from '../accounts/slowdown.ts';
import type { Snapshots } from '../accounts/snapshots.ts';
import type { ControlConfig } from '../config.ts';
import type { OpenJobs } from '../dispatch/open-jobs.ts';
import type { Fleet } from '../fleet/fleet.ts';
import type { Gateway } from '../gateway/gateway.ts';
import type { Metrics } from '../telemetry/metrics.ts';
import { authentication } from './authentication.ts';
import { createBodies } from './bodies.ts';
import { enrolmentRoutes } from './enrolment.ts';
import { asFlotillaError, clientFault, errorAnswer, HttpError, refuseSocket } from './errors.ts';
import { healthRoutes } from './health.ts';
import { jobRoutes } from './jobs.ts';
import { keyRoutes } from './keys.ts';
import { metricsRoutes } from './metrics.ts';
import { nodeRoutes } from './nodes.ts';
import { openaiRoutes, RAW_BODY_ROUTES } from './openai.ts';
import { openapiRoutes } from './openapi.ts';
import { requestIds } from './request-id.ts';
import { type Handlers, nothingHere, refuseForeignRoutes, registerRoutes } from './routing.ts';
import { usageRoutes } from './usage.ts';

/**
 * The HTTP surface, put together. The way of a request: its id, then whether the path exists, then who asks (before a
 * byte of the body is read), then the body, then what the route's schemas say, then its handler. Whatever goes wrong on
 * the way leaves in the one error shape.
 */
export interface HttpDeps {
  config: ControlConfig;
  clock: Clock;
  random: Random;
  log: Log;
  store: Store;
  metrics: Metrics;
  keys: Keys;
  snapshots: Pick<Snapshots, 'changed'>;
  slowdown: Slowdown;
  fleet: Fleet;
  jobs: OpenJobs;
  gateway: Gateway;
  /** Readiness ends before the server does, so that load balancers go elsewhere. */
  stopping: () => boolean;
}

/** A client gets this long for its headers: slow ones hold a socket each, and nothing else yet. */
const HEADERS_TIMEOUT_MS = 10_000;
/** How often Node looks for such clients. */
const HEADERS_CHECK_MS = 1000;
/** Longer than the 60 s of common load balancers, which must not find a connection closed under them. */
const KEEP_ALIVE_MS = 75_000;
const HEADERS_MAX_BYTES = 16 * 1024;
const PATH_PARAM_MAX = 1024;

export function createHttpServer(deps: HttpDeps): FastifyInstance {
  const { config, clock, log } = deps;
  const nextId = requestIds(clock, deps.random);
  const app = fastify({
    logger: false,
    genReqId: (request) => nextId(request as IncomingMessage),
    requestIdHeader: false,
    // Answers take as long as models do; silence is judged where the bytes flow.
    requestTimeout: 0,
    keepAliveTimeout: KEEP_ALIVE_MS,
    http: {
      headersTimeout: HEADERS_TIMEOUT_MS,
      connectionsCheckingInterval: HEADERS_CHECK_MS,
      maxHeaderSize: HEADERS_MAX_BYTES,
      // Asked for below, where the refusal has our shape.
      requireHostHeader: false,
      // HTTP clients that offer h2c with every request (Java's) are answered as if they had not.
      shouldUpgradeCallback: ({ headers }) => headers.upgrade?.toLowerCase() === 'websocket',
    },
    routerOptions: {
      ignoreTrailingSlash: true,
      ignoreDuplicateSlashes: true,
      maxParamLength: PATH_PARAM_MAX,
    },
    return503OnClosing: false,
    // Idle ones at once; what is still under way has until main.ts gives it up.
    forceCloseConnections: 'idle',
    frameworkErrors(error, request, reply) {
      begin(request, reply);
      send(error, request, reply);
    },
    clientErrorHandler(error, socket) {
      const fault = clientFault(error);
      if (fault === undefined) socket.destroy();
      else refuseSocket(socket, fault, nextId());
    },
  });

  const auth = authentication({ ...deps, metrics_token: config.metrics_token });
  app.decorateRequest('principal', null);
  app.decorateRequest('answer', null as unknown as ServerResponse);
  app.addHook('onRequest', async (request, reply) => {
    begin(request, reply);
    if (request.headers.host === undefined && request.raw.httpVersion === '1.1')
      throw new FlotillaError('invalid_request', 'A request of HTTP/1.1 has a Host header.');
    if (request.is404) throw nothingHere(request.method, request.url);
    await auth.onRequest(request, reply);
  });
  app.setErrorHandler(send);
  readBodies(app, deps);
  refuseForeignRoutes(app);
  registerRoutes(app, handlers(deps, auth.refuse), {
    raw: RAW_BODY_ROUTES,
    raw_limit_bytes: config.body_limit_bytes,
  });
  app.server.maxConnections = config.connection_limit;
  app.server.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) =>
    upgrade(request, socket, head),
  );
  // What Node would answer by itself, or not at all, in a shape of its own.
  app.server.on('connect', (request: IncomingMessage, socket: Duplex) =>
    refuseSocket(socket, new HttpError(405, 'This is no proxy.'), nextId(request)),
  );
  app.server.on('checkExpectation', (request: IncomingMessage, { socket }: ServerResponse) => {
    if (socket !== null)
      refuseSocket(socket, new HttpError(417, 'Only 100-continue can be expected.'), nextId(request));
  });
  return app;

  function begin(request: FastifyRequest, reply: FastifyReply): void {
    request.answer = reply.raw;
    // On the raw answer, so that what the gateway writes by itself carries them too.
    reply.raw.setHeader('x-request-id', request.id);
    reply.raw.setHeader('x-content-type-options', 'nosniff');
    reply.raw.setHeader('cache-control', 'no-store');
  }

  function send(error: unknown, request: FastifyRequest, reply: FastifyReply): void {
    const known = asFlotillaError(error);
    const what = { request_id: request.id, method: request.method, route: request.routeOptions?.url };
    if (known.code === 'internal') log.error({ ...what, error }, 'A request failed by a fault of ours.');
    else if (known.status >= 500) log.debug({ ...what, error }, 'A request was refused.');
    if (reply.raw.headersSent) {
      reply.raw.destroy();
      return;
    }
    const { status, headers, body } = errorAnswer(known);
    void reply.code(status).headers(headers).send(body);
  }

  function upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    // The peer may go away while it is being answered.
    socket.on('error', () => {});
    const path = request.url?.split('?')[0] ?? '/';
    const refuse = (error: FlotillaError) => refuseSocket(socket, error, nextId(request));
    if (path === ROUTES.link.path && request.method === ROUTES.link.method)
      deps.fleet.upgrade(request, socket, head, refuse);
    else refuse(new FlotillaError('not_found', `Only ${ROUTES.link.path} can be upgraded.`));
  }
}

function readBodies(app: FastifyInstance, { config, clock, metrics }: HttpDeps): void {
  const bodies = createBodies(
    {
      body_memory_bytes: config.body_memory_bytes,
      client_stall_timeout_ms: config.client_stall_timeout_ms,
    },
    clock,
  );
  metrics.watch({ bodyBytes: bodies.held });
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('*', (request: FastifyRequest, payload: IncomingMessage) =>
    bodies.read(request, payload),
  );
}

function handlers(deps: HttpDeps, refuse: ReturnType<typeof authentication>['refuse']): Handlers {
  return {
    ...healthRoutes(deps),
    ...metricsRoutes(deps.metrics),
    ...openapiRoutes(deps.config.public_url),
    ...openaiRoutes(deps.gateway, deps.metrics),
    ...keyRoutes(deps),
    ...enrolmentRoutes({ ...deps, refuse }),
    ...nodeRoutes(deps.fleet),
    ...jobRoutes(deps.jobs, deps.store),
    ...usageRoutes(deps.store),
    link() {
      // What asks for an upgrade never comes here.
      throw new HttpError(426, 'The node link is a WebSocket.', {
        upgrade: 'websocket',
        connection: 'upgrade',
      });
    },
  };
}
