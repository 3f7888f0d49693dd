import { FlotillaError } from '@flotilla/protocol';
import type { Readable } from 'node:stream';
import type { Fleet } from '../fleet/fleet.ts';
import type { Call, Handlers } from './routing.ts';

type NodeHttpRoutes =
  | 'nodeRegister'
  | 'nodeHeartbeat'
  | 'nodeDeregister'
  | 'nodeLease'
  | 'nodeRequest'
  | 'nodeAccept'
  | 'nodeReject'
  | 'nodeStarted'
  | 'nodeOutput'
  | 'nodeComplete'
  | 'nodeFail'
  | 'nodeReleased';
type SessionRoutes = Exclude<NodeHttpRoutes, 'nodeRegister'>;

/** Their bodies are read by their handlers, as they arrive. */
export const STREAMED_BODY_ROUTES = ['nodeOutput'] as const satisfies readonly NodeHttpRoutes[];

/** The node link over plain HTTP: each call is one of its session's. */
export function nodeHttpRoutes({ http }: Pick<Fleet, 'http'>): Pick<Handlers, NodeHttpRoutes> {
  return {
    nodeRegister: ({ body, request, reply }) => http.register(request.peer!, body, () => reply.raw.destroyed),
    nodeHeartbeat: (call) => sessionOf(call).beat(call.body),
    nodeDeregister: (call) => sessionOf(call).deregister(call.body.reason),
    nodeLease(call) {
      const gone = new AbortController();
      call.reply.raw.once('close', () => gone.abort());
      return sessionOf(call).lease(call.query, gone.signal);
    },
    async nodeRequest(call) {
      const body = sessionOf(call).request(attemptOf(call));
      await call.reply.type('application/json').send(body);
    },
    nodeAccept: (call) => sessionOf(call).accept(attemptOf(call)),
    nodeReject: (call) => sessionOf(call).reject(attemptOf(call), call.body.reason),
    nodeStarted: (call) => sessionOf(call).started(attemptOf(call)),
    nodeOutput(call) {
      const { body, headers } = call.request;
      if (headers['content-encoding'] !== undefined && headers['content-encoding'] !== 'identity') {
        throw new FlotillaError(
          'invalid_request',
          'Output is taken as it is: send it without content-encoding.',
        );
      }
      // Without any body at all there is nothing to wait for: the head alone is told.
      return sessionOf(call).output(
        attemptOf(call),
        call.query,
        (body as Readable | undefined) ?? call.request.raw,
      );
    },
    nodeComplete: (call) => sessionOf(call).complete(attemptOf(call), call.body.usage),
    nodeFail: (call) => sessionOf(call).fail(attemptOf(call), call.body),
    nodeReleased: (call) => sessionOf(call).released(attemptOf(call), call.body.started),
  };

  function sessionOf({ request, query }: Pick<Call<SessionRoutes>, 'request' | 'query'>) {
    return http.session(request.peer!, query.session);
  }
}

function attemptOf({ params }: { params: { id: string; attempt: number } }) {
  return { job: params.id, attempt: params.attempt };
}
