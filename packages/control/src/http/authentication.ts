import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { isIP } from 'node:net';
import { CREDENTIAL_PREFIX, FlotillaError, type Needs, type Scope } from '@flotilla/protocol';
import type { FastifyReply, FastifyRequest } from 'fastify';
import type { Keys } from '../accounts/keys.ts';
import type { Principal } from '../accounts/principal.ts';
import type { Slowdown } from '../accounts/slowdown.ts';
import type { Fleet } from '../fleet/fleet.ts';
import type { NodePeer } from '../fleet/http-nodes.ts';
import type { AuthSurface, Metrics } from '../telemetry/metrics.ts';
import type { AddressOf } from './client-address.ts';

export interface AuthenticationDeps {
  keys: Keys;
  slowdown: Slowdown;
  metrics: Pick<Metrics, 'authFailed'>;
  metrics_token: string | undefined;
  addressOf: AddressOf;
  fleet: Pick<Fleet, 'peer'>;
}

/**
 * Who asks, before anything of a body is read: each route says what it needs. Enrolment tokens
 * are checked where they are used, and so is the credential of an upgrade.
 */
export function authentication(deps: AuthenticationDeps) {
  const { keys, slowdown, metrics, metrics_token, addressOf, fleet } = deps;
  return { onRequest, refuse };

  async function onRequest(request: FastifyRequest, reply: FastifyReply): Promise<void> {
    const needs = request.routeOptions.config.needs ?? 'admin';
    switch (needs) {
      case 'none':
      case 'enrolment':
        return;
      case 'node':
        request.peer = await authenticateNode(request, reply);
        return;
      case 'metrics':
        return authenticateScraper(request, reply);
      default: {
        const principal = await authenticate(request, reply);
        requireRight(principal, needs);
        request.principal = principal;
      }
    }
  }

  async function authenticate(request: FastifyRequest, reply: FastifyReply): Promise<Principal> {
    const credential = credentialOf(request.raw);
    if (credential === undefined) throw noCredential('No API key was sent.');
    const found = keys.authenticate(credential);
    if ('principal' in found) return found.principal;
    return refuse(request, reply, 'api', refusal(found.refused, credential));
  }

  async function authenticateScraper(request: FastifyRequest, reply: FastifyReply): Promise<void> {
    const credential = credentialOf(request.raw);
    if (credential === undefined) {
      if (isDirectLoopback(request.raw)) return;
      throw noCredential('Metrics are read from the machine itself, or with the metrics token.');
    }
    if (metrics_token !== undefined && equal(credential, metrics_token)) return;
    return refuse(
      request,
      reply,
      'metrics',
      new FlotillaError('unauthorized', 'This is not the metrics token.'),
    );
  }

  async function authenticateNode(request: FastifyRequest, reply: FastifyReply): Promise<NodePeer> {
    const credential = credentialOf(request.raw);
    if (credential === undefined)
      throw noCredential('No node credential was sent; POST /node/v1/enrol gives one.');
    try {
      return fleet.peer(credential);
    } catch (error) {
      if (error instanceof FlotillaError && (error.code === 'unauthorized' || error.code === 'revoked'))
        return refuse(request, reply, 'link', error);
      throw error;
    }
  }

  /** Counts a refused credential, lets its address wait, and throws the refusal. */
  async function refuse(
    request: FastifyRequest,
    reply: FastifyReply,
    surface: AuthSurface,
    error: FlotillaError,
  ): Promise<never> {
    metrics.authFailed(surface);
    const { close } = await slowdown.refused(addressOf(request.raw));
    if (close) reply.header('connection', 'close');
    throw error;
  }
}

/** `Authorization: Bearer …`, or `x-api-key` for clients that know no other way. */
export function credentialOf({ headers }: Pick<IncomingMessage, 'headers'>): string | undefined {
  const bearer = /^bearer +(\S+) *$/i.exec(headers.authorization ?? '')?.[1];
  if (bearer !== undefined) return bearer;
  const key = headers['x-api-key'];
  return typeof key === 'string' && key !== '' ? key.trim() : undefined;
}

function noCredential(what: string): FlotillaError {
  return new FlotillaError('unauthorized', `${what} Send it as "Authorization: Bearer …" or "x-api-key: …".`);
}

function refusal(why: 'unknown' | 'expired' | 'revoked', credential: string): FlotillaError {
  if (why === 'revoked') return new FlotillaError('revoked', 'This API key was revoked.');
  if (why === 'expired') return new FlotillaError('unauthorized', 'This API key has expired.');
  if (credential.startsWith(CREDENTIAL_PREFIX.node)) {
    return new FlotillaError(
      'unauthorized',
      'This is the credential of a node, which opens the node link only.',
    );
  }
  if (credential.startsWith(CREDENTIAL_PREFIX.enrolmentToken)) {
    return new FlotillaError('unauthorized', 'This is an enrolment token, which enrols nodes only.');
  }
  return new FlotillaError('unauthorized', 'This API key is not known.');
}

function requireRight(
  principal: Principal,
  needs: Exclude<Needs, 'none' | 'enrolment' | 'node' | 'metrics'>,
): void {
  if (needs === 'key' || principal.admin) return;
  if (needs === 'admin') throw new FlotillaError('forbidden', 'This needs an admin key.');
  const scope: Scope = needs;
  if (!principal.has(scope)) throw new FlotillaError('forbidden', `This key lacks the scope ${scope}.`);
}

const FORWARDED = ['x-forwarded-for', 'x-real-ip', 'forwarded', 'via'];

/**
 * Asked on this machine by a program on this machine: no proxy passed it on, and it was addressed as this machine, so
 * that no web page can read it under a name of its own that points here.
 */
export function isDirectLoopback(request: Pick<IncomingMessage, 'headers' | 'socket'>): boolean {
  const address = (request.socket.remoteAddress ?? '').replace(/^::ffff:/i, '');
  if (address !== '::1' && !address.startsWith('127.')) return false;
  if (FORWARDED.some((name) => request.headers[name] !== undefined)) return false;
  const host = (request.headers.host ?? '').replace(/:\d+$/, '').replace(/^\[(.*)\]$/, '$1');
  return host === '' || host === 'localhost' || isIP(host) !== 0;
}

function equal(a: string, b: string): boolean {
  return timingSafeEqual(digest(a), digest(b));
}

function digest(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}
