import type { FastifyReply, FastifyRequest } from 'fastify';
import type { IncomingMessage } from 'node:http';

/**
 * What a page of another origin may do, where `FLOTILLA_CORS_ORIGINS` says so. A key travels in a header that the page
 * sets itself; cookies are never allowed, so that `*` gives a page nothing that its user would not have typed into it.
 */
export interface Cors {
  /** Names the origin as allowed, on whatever the answer will be. */
  begin(request: FastifyRequest, reply: FastifyReply): void;
  /** Answers the browser's question before the request itself, which comes without a key. @returns whether it was one */
  preflight(request: FastifyRequest, reply: FastifyReply): boolean;
}

/** What a page may read of an answer beside its body. A `*` would do for browsers of these days only. */
const EXPOSED = [
  'x-request-id',
  'x-flotilla-node',
  'x-flotilla-provider',
  'x-flotilla-attempts',
  'x-flotilla-queue-ms',
  'x-should-retry',
  'retry-after',
  'retry-after-ms',
  ...['limit', 'remaining', 'reset'].flatMap((what) =>
    ['requests', 'tokens'].map((unit) => `x-ratelimit-${what}-${unit}`),
  ),
].join(', ');
const METHODS = 'GET, HEAD, POST, PUT, PATCH, DELETE';
/** As long as Chromium keeps an answer. */
const MAX_AGE_S = '7200';

/** `origins`: exact ones, or `*` alone. Empty: every browser refuses, as it does without us. */
export function cors(origins: readonly string[]): Cors {
  const every = origins.includes('*');
  const allowed = new Set(origins);
  return { begin, preflight };

  function begin(request: FastifyRequest, reply: FastifyReply): void {
    if (origins.length === 0) return;
    // Caches must not give one origin what was answered to another.
    if (!every) reply.header('vary', 'origin');
    if (!isAllowed(request.raw)) return;
    reply.header('access-control-allow-origin', every ? '*' : request.headers.origin!);
    reply.header('access-control-expose-headers', EXPOSED);
  }

  function preflight(request: FastifyRequest, reply: FastifyReply): boolean {
    const { headers } = request;
    if (request.method !== 'OPTIONS' || headers['access-control-request-method'] === undefined) return false;
    if (!isAllowed(request.raw)) return false;
    const asked = headers['access-control-request-headers'];
    reply.header('access-control-allow-methods', METHODS);
    reply.header('access-control-max-age', MAX_AGE_S);
    // A `*` would not cover `authorization`; what is asked for is as harmless as what any other client sends.
    if (asked !== undefined) reply.header('access-control-allow-headers', asked);
    void reply.code(204).send();
    return true;
  }

  function isAllowed({ headers }: Pick<IncomingMessage, 'headers'>): boolean {
    return headers.origin !== undefined && (every || allowed.has(headers.origin));
  }
}
