import { type Clock, type HttpHead, HttpHeadReader } from '@flotilla/core';
import { FlotillaError } from '@flotilla/protocol';
import type { Readable } from 'node:stream';

/**
 * One call of `output`: bytes of an answer, taken as they arrive and no faster than the client takes them.
 *
 *     head ──▶ flowing ◀──room──no room──▶ waiting (the call is read no further, so its sender waits too)
 *     any ──its end, all taken──▶ taken      any ──stop(), no head, its sender is gone──▶ refused
 *
 * Moved by: the request's stream, `room` (the client has taken something), `stop` (the attempt is over, or the node
 * sends again). Nothing is kept here but one chunk.
 */
export interface UploadTarget {
  /** Bytes of the answer that are there. */
  received(): number;
  /** How many more may come now. */
  room(): number;
  /** @throws FlotillaError when this head ends the attempt */
  head(head: HttpHead): void;
  body(bytes: Uint8Array): void;
}

export interface Upload {
  /** Rejects with why it was refused. */
  readonly taken: Promise<void>;
  room(): void;
  stop(error: FlotillaError): void;
}

/** What is refused is read on for this long, unkept, so that its sender gets the refusal and not a reset. */
const LINGER_MS = 2000;

/** @param head what stands before the body; `inline`: it is in the bytes themselves */
export function startUpload(
  source: Readable,
  clock: Clock,
  target: UploadTarget,
  from: { offset: number; head: HttpHead | 'inline' },
): Upload {
  const reader = from.head === 'inline' ? new HttpHeadReader() : undefined;
  const { promise: taken, resolve, reject } = Promise.withResolvers<void>();
  let headed = reader === undefined;
  let { offset } = from;
  let waiting: Uint8Array | null = null;
  let over = false;
  const upload: Upload = { taken, room: goOn, stop };

  // The first thing that may refuse it comes before its first byte.
  guarded(() => {
    if (from.head !== 'inline') target.head(from.head);
  });
  source.on('data', onData).once('end', onEnd).once('error', onGone).once('close', onGone);
  return upload;

  function onData(chunk: Uint8Array): void {
    if (!over) guarded(() => (headed ? take(chunk) : takeHead(chunk)));
  }

  function takeHead(chunk: Uint8Array): void {
    const found = reader!.push(chunk);
    if (found === undefined) return;
    if (found === 'broken') throw noHead();
    headed = true;
    target.head(found.head);
    take(found.rest);
  }

  /** Takes bytes that stand at `offset`: those that are there are passed over, those without room wait. */
  function take(bytes: Uint8Array): void {
    const repeated = Math.min(bytes.byteLength, target.received() - offset);
    offset += repeated;
    let fresh = bytes.subarray(repeated);
    while (fresh.byteLength > 0 && !over) {
      const part = fresh.subarray(0, target.room());
      if (part.byteLength === 0) {
        waiting = fresh;
        source.pause();
        return;
      }
      offset += part.byteLength;
      fresh = fresh.subarray(part.byteLength);
      target.body(part);
    }
  }

  function goOn(): void {
    if (over || waiting === null) return;
    const bytes = waiting;
    waiting = null;
    guarded(() => take(bytes));
    // Still here unless that was refused, or waits again.
    if (!over && waiting === null) source.resume();
  }

  function onEnd(): void {
    if (over) return;
    if (!headed) return stop(noHead());
    finish();
    resolve();
  }

  function onGone(): void {
    if (!over) stop(new FlotillaError('cancelled', 'The call was broken off.'));
  }

  function guarded(run: () => void): void {
    try {
      run();
    } catch (error) {
      if (!(error instanceof FlotillaError)) throw error;
      stop(error);
    }
  }

  function stop(error: FlotillaError): void {
    if (over) return;
    finish();
    const linger = clock.after(LINGER_MS, () => source.destroy());
    source.once('end', () => linger.cancel()).once('close', () => linger.cancel());
    source.resume();
    reject(error);
  }

  function finish(): void {
    over = true;
    waiting = null;
    source.off('data', onData).off('end', onEnd).off('close', onGone);
  }
}

function noHead(): FlotillaError {
  return new FlotillaError(
    'invalid_request',
    'With head=inline the status line and the headers of the model server come first, as `curl -i` prints them.',
    { param: 'head' },
  );
}
