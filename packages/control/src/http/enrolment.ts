import type { Clock, EnrolmentResult, Log, Random, Store, TokenRecord } from '@flotilla/core';
import { FlotillaError, makeId, type TokenView } from '@flotilla/protocol';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { hashCredential, makeCredential } from '../accounts/credential.ts';
import type { Snapshots } from '../accounts/snapshots.ts';
import type { AuthSurface } from '../telemetry/metrics.ts';
import { iso } from './iso.ts';
import { knownId, notFound, pageRequest } from './paging.ts';
import type { Handlers } from './routing.ts';

export interface EnrolmentDeps {
  store: Store;
  snapshots: Pick<Snapshots, 'changed'>;
  clock: Clock;
  random: Random;
  log: Log;
  /** Where machines reach this control plane, when its owner has told. */
  public_url: string | undefined;
  /** Counts a refused credential and lets its address wait. */
  refuse: (
    request: FastifyRequest,
    reply: FastifyReply,
    surface: AuthSurface,
    error: FlotillaError,
  ) => Promise<never>;
}

type EnrolmentRoutes = 'listTokens' | 'createToken' | 'deleteToken' | 'enrol';

export function enrolmentRoutes(deps: EnrolmentDeps): Pick<Handlers, EnrolmentRoutes> {
  const { store, snapshots, clock, random, log, public_url, refuse } = deps;
  return {
    async listTokens({ query }) {
      const page = await store.listTokens(pageRequest(query, 'enrolmentToken'), clock.wall_ms());
      return { data: page.rows.map(tokenView), next_after: page.next_after };
    },

    async createToken({ body }) {
      const now = clock.wall_ms();
      const credential = makeCredential('enrolmentToken', random);
      const token: TokenRecord = {
        id: makeId('enrolmentToken', now, random.bytes(10)),
        hash: hashCredential(credential),
        labels: body.labels,
        allowed_models: body.allowed_models,
        max_uses: body.max_uses,
        uses: 0,
        created_at: now,
        expires_at: now + body.ttl_ms,
      };
      await store.insertToken(token);
      return { ...tokenView(token), token: credential, public_url: public_url ?? null };
    },

    async deleteToken({ params }) {
      const deleted = await store.deleteToken(knownId('enrolmentToken', params.id, 'enrolment token'));
      if (!deleted) throw notFound('enrolment token', params.id);
    },

    async enrol({ body, request, reply }) {
      const now = clock.wall_ms();
      const credential = makeCredential('node', random);
      const result = await store.enrolNode({
        token_hash: hashCredential(body.token),
        node: makeId('node', now, random.bytes(10)),
        name: body.name,
        labels: body.labels,
        credential: {
          id: makeId('credential', now, random.bytes(10)),
          hash: hashCredential(credential),
          created_at: now,
          expires_at: null,
        },
        now,
      });
      if ('refused' in result) return refuseEnrolment(result.refused, body.name, request, reply);
      const { id, name } = result.enrolled;
      log.info({ node: id, name }, 'A node was enrolled.');
      // So that its first connection finds it; a failure to read costs it nothing but that.
      await snapshots.changed();
      return { id, name, credential };
    },
  };

  function refuseEnrolment(
    why: Extract<EnrolmentResult, { refused: string }>['refused'],
    name: string,
    request: FastifyRequest,
    reply: FastifyReply,
  ): Promise<never> {
    switch (why) {
      case 'name_taken':
        throw new FlotillaError(
          'name_taken',
          `Another node is called ${name}: choose another name with --name.`,
          {
            param: 'name',
          },
        );
      case 'token_unknown':
        return refuse(request, reply, 'enrolment', badToken('This enrolment token is not known.'));
      case 'token_expired':
        return refuse(
          request,
          reply,
          'enrolment',
          badToken('This enrolment token has expired: make a new one.'),
        );
      case 'token_used':
        return refuse(
          request,
          reply,
          'enrolment',
          badToken('This enrolment token is used up: make a new one.'),
        );
    }
  }
}

function badToken(message: string): FlotillaError {
  return new FlotillaError('unauthorized', message, { param: 'token' });
}

function tokenView({ hash: _hash, ...token }: TokenRecord): TokenView {
  return { ...token, created_at: iso(token.created_at), expires_at: iso(token.expires_at) };
}
