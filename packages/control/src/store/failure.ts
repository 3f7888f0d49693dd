import { FlotillaError } from '@flotilla/protocol';

/**
 * What a failed statement means for its rows:
 * - `transient`: the store, not the rows, is at fault (connection lost, server stopping, deadlock); the same rows may
 *   be sent again.
 * - `data`: some row is at fault and will fail again.
 */
export type FailureKind = 'transient' | 'data';

/** Classes and codes of PostgreSQL's appendix A that pass by themselves. */
const TRANSIENT_CLASSES = new Set(['08', '40', '53', '57', '58', 'XX', '25']);
const TRANSIENT_CODES = new Set(['55P03']);

export function failureKind(error: unknown): FailureKind {
  if (error instanceof FlotillaError) return error.code === 'unavailable' ? 'transient' : 'data';
  if (error instanceof TypeError || error instanceof RangeError || error instanceof SyntaxError)
    return 'data';
  const code = sqlState(error);
  if (code === undefined) return 'transient'; // a socket, a time-out, a worker that died: nothing that names a row
  return TRANSIENT_CODES.has(code) || TRANSIENT_CLASSES.has(code.slice(0, 2)) ? 'transient' : 'data';
}

/** A digit is in every SQLSTATE and, of five letters, in no errno (EPIPE, EBUSY). */
const SQLSTATE = /^(?=.*\d)[0-9A-Z]{5}$/;

/** The five-character SQLSTATE, on whichever engine. */
function sqlState(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null || !('code' in error)) return undefined;
  const { code } = error;
  return typeof code === 'string' && SQLSTATE.test(code) ? code : undefined;
}

/**
 * The error of one statement, as the rest of the program sees it: what is transient is the catalogue's `unavailable`
 * (503, retryable) with its cause; what is not stays itself.
 */
export function asStoreError(error: unknown): Error {
  const cause = error instanceof Error ? error : new Error(String(error));
  if (cause instanceof FlotillaError || failureKind(cause) === 'data') return cause;
  const unavailable = new FlotillaError(
    'unavailable',
    'The store cannot be reached or did not answer in time.',
  );
  unavailable.cause = cause; // for the log, never for a client: it may name the server's address
  return unavailable;
}
