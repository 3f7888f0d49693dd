import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { setTimeout as wait } from 'node:timers/promises';
import type { Piece, Script } from './script.ts';

export interface Pace {
  /** To the first byte, after the slot was taken. */
  ttft_ms: number;
  /** Between tokens; 0: all at once. */
  token_ms: number;
}

/** Where an endless answer has no pace of its own. */
const REPEAT_MS = 10;
/** A reset overtakes bytes that are still on their way; this lets them arrive. */
const RESET_AFTER_MS = 20;

/**
 * Plays a script. Resolves when it is played to its end, rejects with the signal's reason as soon as the client left:
 * nothing is generated for nobody.
 * @param onFirstByte called when the first byte of the body is handed over
 */
export async function deliver(
  response: ServerResponse,
  script: Script,
  pace: Pace,
  signal: AbortSignal,
  onFirstByte: () => void,
): Promise<void> {
  const first_ms = performance.now() + pace.ttft_ms;
  await until(first_ms, signal);
  if (script.head) {
    response.writeHead(script.head.status, script.head.headers);
    if (script.pieces.length === 0) response.flushHeaders();
  }
  let last_ms = first_ms;
  let first = true;
  for (const piece of script.pieces) {
    last_ms = Math.max(first_ms + piece.after_tokens * pace.token_ms, last_ms + (piece.extra_ms ?? 0));
    await until(last_ms, signal);
    if (first) onFirstByte();
    first = false;
    await write(response, piece, signal);
  }
  await end(response, script, pace, signal);
}

async function end(response: ServerResponse, script: Script, pace: Pace, signal: AbortSignal): Promise<void> {
  switch (script.ending) {
    case 'end':
      response.end();
      if (!response.writableFinished) await once(response, 'finish', { signal });
      return;
    case 'close':
      response.socket?.destroySoon();
      return;
    case 'reset':
      if (script.head) await wait(RESET_AFTER_MS, undefined, { signal });
      response.socket?.resetAndDestroy();
      return;
    case 'hang':
      await once(response, 'never', { signal });
      return;
    case 'repeat': {
      const piece = script.pieces.at(-1);
      while (piece) {
        await wait(pace.token_ms || REPEAT_MS, undefined, { signal });
        await write(response, piece, signal);
      }
    }
  }
}

async function write(response: ServerResponse, piece: Piece, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  if (!response.write(piece.text, piece.encoding ?? 'utf8')) await once(response, 'drain', { signal });
}

/** Waits on a schedule, not for intervals, so that a late timer does not delay all that follows. */
async function until(due_ms: number, signal: AbortSignal): Promise<void> {
  const left_ms = due_ms - performance.now();
  if (left_ms > 0) await wait(left_ms, undefined, { signal });
}
