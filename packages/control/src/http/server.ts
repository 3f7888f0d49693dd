import fastify, {
  type FastifyHttpOptions,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
} from 'fastify';
import type { Clock, Log, Random, Store } from '@flotilla/core';
import { FlotillaError, ROUTES, type RouteName } from '@flotilla/protocol';
import type { IncomingMessage, Server, ServerOptions, ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import type { Keys } from '../accounts/keys.ts';
import type { Limits } from '../accounts/limits.ts';
import type { Slowdown } from '../accounts/slowdown.ts';
import type { Snapshots } from '../accounts/snapshots.ts';
import type { ControlConfig } from '../config.ts';
import type { OpenJobs } from '../dispatch/open-jobs.ts';
import type { Discoveries } from '../discovery/discoveries.ts';
import type { BodyMemory } from '../body-memory.ts';
import type { Detached } from '../detached/detached.ts';
import type { Fleet } from '../fleet/fleet.ts';
import type { Roster } from '../fleet/roster.ts';
import type { Gateway } from '../gateway/gateway.ts';
import type { Sealer } from '../secrets/sealer.ts';
import type { Metrics } from '../telemetry/metrics.ts';
import type { Traces } from '../telemetry/traces.ts';
import type { ModelRoutes } from '../upstreams/model-routes.ts';
import type { Providers } from '../upstreams/providers.ts';
import { authentication } from './authentication.ts';
import { auditing, auditRoutes } from './audit.ts';
import { backupRoutes } from './backup.ts';
import { createBodies } from './bodies.ts';
import { clientAddresses } from './client-address.ts';
import { cors } from './cors.ts';
import { discoveryRoutes } from './discovery.ts';
import { RAW_JOB_ROUTES, detachedRoutes } from './detached.ts';
import { enrolmentRoutes } from './enrolment.ts';
import { asFlotillaError, clientFault, errorAnswer, HttpError, refuseSocket } from './errors.ts';
import { healthRoutes } from './health.ts';
import { findJob, jobRoutes, shown } from './jobs.ts';
import { keyRoutes } from './keys.ts';
import { metricsRoutes } from './metrics.ts';
import { nodeHttpRoutes, STREAMED_BODY_ROUTES } from './node-http.ts';
import { modelRouteRoutes } from './model-routes.ts';
import { nodeRoutes } from './nodes.ts';
import { openaiRoutes, RAW_BODY_ROUTES } from './openai.ts';
import { openapiRoutes } from './openapi.ts';
import { pulseRoutes } from './pulse.ts';
import { providerRoutes } from './providers.ts';
import { requestIds } from './request-id.ts';
import { createResults } from './results.ts';
import { type Handlers, nothingHere, refuseForeignRoutes, registerRoutes } from './routing.ts';
import { TLS_MIN_VERSION, type TlsPair } from './tls.ts';
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
  traces: Traces;
  keys: Keys;
  limits: Limits;
  snapshots: Pick<Snapshots, 'changed'>;
  slowdown: Slowdown;
  fleet: Fleet;
  discoveries: Discoveries;
  providers: Providers;
  routes: ModelRoutes;
  sealer: Sealer | null;
  jobs: OpenJobs;
  detached: Detached;
  roster: Roster;
  gateway: Gateway;
  memory: BodyMemory;
  /** Readiness ends before the server does, so that load balancers go elsewhere. */
  stopping: () => boolean;
  /** Whether records of requests are being written. */
  recording: () => boolean;
  /** Resolves when what has ended by now has its row. */
  recorded: () => Promise<unknown>;
  replica: string;
  bus: { readonly connected: boolean } | null;
  /** The port then speaks https and wss. */
  tls: TlsPair | undefined;
}

/** A client gets this long for its headers: slow ones hold a socket each, and nothing else yet. */
const HEADERS_TIMEOUT_MS = 10_000;
/** How often Node looks for such clients. */
const HEADERS_CHECK_MS = 1000;
/** Longer than the 60 s of common load balancers, which must not find a connection closed under them. */
const KEEP_ALIVE_MS = 75_000;
const HEADERS_MAX_BYTES = 16 * 1024;
const PATH_PARAM_MAX = 1024;
const UNABLE_RETRY_MS = 2000;

/**
 * Of fastify's own schemas: there are none, for `registerRoutes` checks by those of the protocol. Without a word about them
 * fastify would load their compilers, 150 files of a start.
 */
const NO_SCHEMAS = { compilersFactory: { buildValidator: noSchemas, buildSerializer: noSchemas } };

function noSchemas(): never {
  throw new Error('A route of fastify has a schema: those of Flotilla are in the protocol.');
}

export function createHttpServer(deps: HttpDeps): FastifyInstance {
  const { config, clock, log } = deps;
  const addressOf = clientAddresses(config.trusted_proxies);
  const crossOrigin = cors(config.cors_origins);
  const nextId = requestIds(clock, deps.random);
  const app = fastify({
    logger: false,
    genReqId: (request) => nextId(request as IncomingMessage),
    requestIdHeader: false,
    // Answers take as long as models do; silence is judged where the bytes flow.
    requestTimeout: 0,
    keepAliveTimeout: KEEP_ALIVE_MS,
    ...listener(deps.tls),
    routerOptions: {
      ignoreTrailingSlash: true,
      ignoreDuplicateSlashes: true,
      maxParamLength: PATH_PARAM_MAX,
    },
    return503OnClosing: false,
    schemaController: NO_SCHEMAS,
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

  const auth = authentication({ ...deps, metrics_token: config.metrics_token, addressOf });
  app.decorateRequest('principal', null);
  app.decorateRequest('peer', null);
  app.decorateRequest('answer', null as unknown as ServerResponse);
  app.addHook('onRequest', async (request, reply) => {
    begin(request, reply);
    if (request.headers.host === undefined && request.raw.httpVersion === '1.1')
      throw new FlotillaError('invalid_request', 'A request of HTTP/1.1 has a Host header.');
    if (crossOrigin.preflight(request, reply)) return reply;
    if (request.is404) throw nothingHere(request.method, request.url);
    await auth.onRequest(request, reply);
    if (!tellsItsRates(request)) tellRates(request, reply);
  });
  app.setErrorHandler(send);
  readBodies(app, deps);
  refuseForeignRoutes(app);
  registerRoutes(
    app,
    handlers(deps, auth.refuse),
    { raw: [...RAW_BODY_ROUTES, ...RAW_JOB_ROUTES], raw_limit_bytes: config.body_limit_bytes },
    auditing({ ...deps, addressOf }),
  );
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
    // Who writes on the raw answer takes them along (`begunHeaders`). Set there, each header of the answer, theirs
    // and all others, would be checked and stored one by one, which costs every request a twenty-fifth of its work.
    reply.headers({
      'x-request-id': request.id,
      'x-content-type-options': 'nosniff',
      'cache-control': 'no-store',
    });
    crossOrigin.begin(request, reply);
  }

  /** On every answer of `/v1`; those that take something of a limit say how it stands after that. */
  function tellRates({ principal, routeOptions }: FastifyRequest, reply: FastifyReply): void {
    if (principal === null || routeOptions.url?.startsWith('/v1/') !== true) return;
    reply.headers(deps.limits.headers(principal.key));
  }

  function send(error: unknown, request: FastifyRequest, reply: FastifyReply): void {
    const known = asFlotillaError(error);
    if (tellsItsRates(request) && !reply.raw.headersSent) tellRates(request, reply);
    const what = { request_id: request.id, method: request.method, route: request.routeOptions?.url };
    if (known.code === 'internal') log.error({ ...what, error }, 'A request failed by a fault of ours.');
    else log.debug({ ...what, error }, 'A request was refused.');
    if (reply.raw.headersSent) {
      reply.raw.destroy();
      return;
    }
    const { status, headers, body } = errorAnswer(known);
    void reply.code(status).headers(headers).send(body);
  }

  function upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    socket.on('error', goneAway);
    const path = request.url?.split('?')[0] ?? '/';
    const refuse = (error: FlotillaError) => {
      // By this header `flotilla doctor` tells an upgrade that arrived from one that a proxy made a plain request.
      const more = { 'sec-websocket-version': '13' };
      const answer = () => refuseSocket(socket, error, nextId(request), more);
      if (error.code !== 'unauthorized' && error.code !== 'revoked') return answer();
      deps.metrics.authFailed('link');
      void deps.slowdown.refused(addressOf(request)).then(answer);
    };
    if (path === ROUTES.link.path && request.method === ROUTES.link.method)
      deps.fleet.upgrade(request, socket, head, refuse, () => setApart(app.server, socket));
    else refuse(new FlotillaError('not_found', `Only ${ROUTES.link.path} can be upgraded.`));
  }
}

/** The peer may go away while it is being answered. Made here, since a link keeps it: made beside a request, it keeps that. */
function goneAway(): void {}

/** A linked node's socket is none of those that clients have between them. */
function setApart(server: Server, socket: Duplex): void {
  if (socket.destroyed) return;
  server.maxConnections += 1;
  socket.once('close', () => {
    server.maxConnections -= 1;
  });
}

const TELLS_ITS_RATES = new Set<RouteName | undefined>(RAW_BODY_ROUTES);

/** What the gateway answers says by itself how its key's limits stand; only its refusals have to be told here. */
function tellsItsRates({ routeOptions }: FastifyRequest): boolean {
  return TELLS_ITS_RATES.has(routeOptions.config?.name);
}

/** How the port is opened: the same limits with TLS and without. */
function listener(tls: TlsPair | undefined): FastifyHttpOptions<Server> {
  const limits: ServerOptions = {
    headersTimeout: HEADERS_TIMEOUT_MS,
    connectionsCheckingInterval: HEADERS_CHECK_MS,
    maxHeaderSize: HEADERS_MAX_BYTES,
    // Asked for where requests begin, so that the refusal has our shape.
    requireHostHeader: false,
    // HTTP clients that offer h2c with every request (Java's) are answered as if they had not.
    shouldUpgradeCallback: ({ headers }) => headers.upgrade?.toLowerCase() === 'websocket',
  };
  if (tls === undefined) return { http: limits };
  const { cert, key } = tls;
  const https = { ...limits, cert, key, minVersion: TLS_MIN_VERSION, handshakeTimeout: HEADERS_TIMEOUT_MS };
  // Of a server with TLS, fastify has a type of its own; nothing here or in a handler can tell them apart.
  return { https } as unknown as FastifyHttpOptions<Server>;
}

function readBodies(app: FastifyInstance, { config, clock, metrics, memory }: HttpDeps): void {
  const bodies = createBodies(memory, config, clock);
  metrics.watch({ bodyBytes: () => memory.held_bytes });
  const streamed = new Set<RouteName | undefined>(STREAMED_BODY_ROUTES);
  app.removeAllContentTypeParsers();
  // All of them are read alike. JSON by its name too, or fastify would take each request's content type to pieces.
  app.addContentTypeParser(['application/json', '*'], (request: FastifyRequest, payload: IncomingMessage) =>
    streamed.has(request.routeOptions.config.name) ? Promise.resolve(payload) : bodies.read(request, payload),
  );
}

function handlers(deps: HttpDeps, refuse: ReturnType<typeof authentication>['refuse']): Handlers {
  const jobs = {
    open: deps.jobs,
    store: deps.store,
    recorded: () => deps.recorded(),
    results: createResults({ ...deps, stall_ms: deps.config.client_stall_timeout_ms }),
    detached: deps.detached,
    places: deps.routes,
    everywhere: () => [...deps.roster.all(), ...[...deps.providers.all()].map(({ node }) => node)],
  };
  return {
    ...healthRoutes(deps),
    ...metricsRoutes(deps.metrics),
    ...openapiRoutes(deps.config.public_url),
    ...openaiRoutes(deps.gateway, deps.metrics, deps.traces),
    ...keyRoutes(deps),
    ...enrolmentRoutes({ ...deps, public_url: deps.config.public_url, refuse }),
    ...nodeRoutes(deps.fleet),
    ...discoveryRoutes(deps.discoveries, deps.roster),
    ...jobRoutes(jobs),
    ...detachedRoutes({
      detached: deps.detached,
      log: deps.log,
      limits: deps.limits,
      find: async (id, principal) => shown(await findJob(jobs, id, principal), principal),
      rules: {
        permittedModel: (asked, principal) => deps.gateway.permittedModel(asked, principal),
        queue_timeout_ms: deps.config.detached_queue_timeout_ms,
        run_timeout_ms: deps.config.run_timeout_ms,
        retention_ms: deps.config.detached_retention_ms,
      },
      refuseWhenUnable() {
        if (deps.stopping() || !deps.recording()) {
          const message =
            'This control plane takes no new work now: it is stopping, or its store does not answer.';
          throw new FlotillaError('unavailable', message, { retry_after_ms: UNABLE_RETRY_MS });
        }
      },
    }),
    ...nodeHttpRoutes(deps.fleet),
    ...providerRoutes(deps),
    ...modelRouteRoutes(deps),
    ...auditRoutes(deps.store),
    ...usageRoutes(deps),
    ...pulseRoutes(deps.clock),
    ...backupRoutes({ ...deps, stall_ms: deps.config.client_stall_timeout_ms }),
    link() {
      // What asks for an upgrade never comes here.
      throw new HttpError(426, 'The node link is a WebSocket.', {
        upgrade: 'websocket',
        connection: 'upgrade',
      });
    },
  };
}
