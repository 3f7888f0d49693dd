import type { Clock, Timer } from '@flotilla/core';
import { FlotillaError } from '@flotilla/protocol';
import type { FastifyRequest } from 'fastify';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { BodyMemory } from '../body-memory.ts';
import { HttpError } from './errors.ts';

/**
 * Request bodies, as the bytes that came. All bodies of the process share one budget, so that many large requests at
 * once are refused instead of ending the process. What a body takes is counted as its bytes arrive (a declared length
 * takes nothing) and given back when its answer is over: the gateway may need it again for another node until then.
 */
export interface Bodies {
  /** The content-type parser of every route. */
  read(request: FastifyRequest, payload: IncomingMessage): Promise<Buffer>;
}

/** Bodies in memory live as long as their requests; a second later some will have ended. */
const MEMORY_RETRY_MS = 1000;
/** A body that is refused is read on for this long, unkept, so that its sender gets the refusal and not a reset. */
const LINGER_MS = 2000;

export function createBodies(
  memory: BodyMemory,
  limits: { client_stall_timeout_ms: number },
  clock: Clock,
): Bodies {
  return { read };

  async function read(request: FastifyRequest, payload: IncomingMessage): Promise<Buffer> {
    const limit = request.routeOptions.bodyLimit;
    const share = takeShare(request.answer);
    const refusal = refuseUnread(request, limit);
    return collect(payload, { clock, stall_ms: limits.client_stall_timeout_ms, refusal, take });

    function take(bytes: number): FlotillaError | undefined {
      if (share.bytes + bytes > limit) return tooLarge(limit);
      if (!memory.fits(bytes)) return noMemory();
      share.bytes += bytes;
      memory.take(bytes);
      return undefined;
    }
  }

  function refuseUnread({ headers }: FastifyRequest, limit: number): FlotillaError | undefined {
    const encoding = headers['content-encoding'];
    if (encoding !== undefined && encoding !== 'identity') {
      return new HttpError(415, 'Bodies are read as they are: send them without content-encoding.');
    }
    const declared = Number(headers['content-length'] ?? 0);
    if (declared > limit) return tooLarge(limit);
    return memory.fits(declared) ? undefined : noMemory();
  }

  /** A request's part of the budget; it goes back once, when the exchange is over. */
  function takeShare(answer: ServerResponse) {
    const share = { bytes: 0 };
    answer.once('close', () => {
      memory.give(share.bytes);
      share.bytes = 0;
    });
    return share;
  }
}

interface Collecting {
  clock: Clock;
  stall_ms: number;
  /** Why it is refused before its first byte. */
  refusal: FlotillaError | undefined;
  /** Counts bytes, or says why no more are taken. */
  take: (bytes: number) => FlotillaError | undefined;
}

/**
 *     reading ──end──▶ whole
 *        └──refused──▶ lingering (bytes are dropped) ──end, or 2 s──▶ refused
 *     either ──nothing came for `stall_ms`, or the client is gone──▶ refused
 */
function collect(payload: IncomingMessage, { clock, stall_ms, refusal, take }: Collecting): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let refused = refusal;
    let heard_ms = clock.now_ms();
    let timer: Timer = clock.after(refused === undefined ? stall_ms : LINGER_MS, expire);
    payload.on('data', onData).once('end', onEnd).once('error', onGone).once('close', onGone);

    function onData(chunk: Buffer): void {
      heard_ms = clock.now_ms();
      if (refused !== undefined) return;
      const objection = take(chunk.length);
      if (objection === undefined) chunks.push(chunk);
      else linger(objection);
    }
    function linger(error: FlotillaError): void {
      refused = error;
      chunks.length = 0;
      timer.cancel();
      timer = clock.after(LINGER_MS, expire);
    }
    function expire(): void {
      const silent_ms = clock.now_ms() - heard_ms;
      if (refused !== undefined) finish(refused);
      else if (silent_ms >= stall_ms)
        finish(new HttpError(408, `No byte of the body came for ${stall_ms} ms.`));
      else timer = clock.after(stall_ms - silent_ms, expire);
    }
    function onEnd(): void {
      finish(refused);
    }
    function onGone(): void {
      finish(refused ?? new FlotillaError('cancelled', 'The client went away before its request was whole.'));
    }
    function finish(error: FlotillaError | undefined): void {
      timer.cancel();
      payload.off('data', onData).off('end', onEnd).off('close', onGone);
      if (error === undefined) resolve(chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks));
      else reject(error);
    }
  });
}

function tooLarge(limit: number): FlotillaError {
  return new FlotillaError('payload_too_large', `The body is larger than ${limit} bytes.`);
}

export function noMemory(): FlotillaError {
  return new FlotillaError('unavailable', 'Too many large requests are under way; try again in a moment.', {
    retry_after_ms: MEMORY_RETRY_MS,
  });
}
