/**
 * The one error catalogue. Every refusal that leaves Flotilla, over HTTP, in a stream or on a node link, has one of
 * these codes; a test holds it equal to docs/reference/errors.md in both directions.
 *
 * Throw a `FlotillaError` for a refusal that ends a request; return a tagged result where refusing is part of the
 * normal course (a stale attempt, no free slot).
 */
export interface ErrorEntry {
  /** HTTP status of an answer that carries this error. */
  readonly status: number;
  /** OpenAI's coarse class, which its SDKs map to exception types. */
  readonly type: string;
  /** Whether the same request may succeed later. False adds `x-should-retry: false`. */
  readonly retryable: boolean;
  /** What it means and what to do next, for the reference. */
  readonly meaning: string;
}

const entry = (status: number, type: string, retryable: boolean, meaning: string): ErrorEntry => ({
  status,
  type,
  retryable,
  meaning,
});

export const ERRORS = {
  invalid_request: entry(
    400,
    'invalid_request_error',
    false,
    'The request is malformed; `param` names the part.',
  ),
  unauthorized: entry(401, 'authentication_error', false, 'No credential, or one that is not known.'),
  insufficient_credit: entry(402, 'insufficient_quota', false, "The key's token budget is used up."),
  forbidden: entry(403, 'permission_error', false, 'The credential is known but may not do this.'),
  revoked: entry(403, 'permission_error', false, 'The credential was withdrawn; a node stops for good.'),
  not_found: entry(404, 'not_found_error', false, 'No such thing, or not one that this key may see.'),
  model_not_found: entry(404, 'not_found_error', false, 'No node or route has ever offered this model.'),
  conflict: entry(409, 'conflict_error', false, 'The thing is not in a state that allows this.'),
  name_taken: entry(409, 'conflict_error', false, 'Another node has this name.'),
  node_in_use: entry(
    409,
    'conflict_error',
    true,
    'Another daemon with this credential is connected and alive.',
  ),
  wrong_session: entry(409, 'conflict_error', false, 'The session belongs to another replica or has ended.'),
  payload_too_large: entry(413, 'invalid_request_error', false, 'The body or frame exceeds its limit.'),
  rate_limited: entry(429, 'rate_limit_error', true, "One of the key's limits is reached."),
  queue_full: entry(429, 'rate_limit_error', true, 'Too many requests already wait for this model.'),
  cancelled: entry(499, 'cancelled', false, 'The client or an operator cancelled the work.'),
  internal: entry(
    500,
    'server_error',
    true,
    'A fault of Flotilla itself; the request id finds it in the log.',
  ),
  backend_error: entry(502, 'server_error', true, 'The model server failed and no other could serve.'),
  attempts_exhausted: entry(
    502,
    'server_error',
    true,
    'Every allowed attempt failed; `attempts` tells each story.',
  ),
  origin_lost: entry(502, 'server_error', false, 'The node that held the work never came back.'),
  no_capacity: entry(503, 'server_error', true, 'The model is known but no node can serve it now.'),
  node_lost: entry(503, 'server_error', true, 'The node vanished while the answer was under way.'),
  unavailable: entry(503, 'server_error', true, 'The control plane cannot record work now, or is stopping.'),
  queue_timeout: entry(504, 'timeout_error', true, 'No slot became free before the queue deadline.'),
  run_timeout: entry(504, 'timeout_error', false, 'The work ran longer than its limit.'),
} as const satisfies Record<string, ErrorEntry>;

export type ErrorCode = keyof typeof ERRORS;
export const ERROR_CODES = Object.keys(ERRORS) as ErrorCode[];

export interface ErrorDetails {
  /** The part of the request at fault, as a dotted path. */
  param?: string;
  /** How long to wait before the same request is worth repeating. */
  retry_after_ms?: number;
  /** Further headers of an answer that carries the error. */
  headers?: Record<string, string>;
  /** Further members of the error object, for people and tools. */
  more?: Record<string, unknown>;
}

export interface ErrorBody {
  error: { message: string; type: string; code: ErrorCode; param: string | null; [more: string]: unknown };
}

/** A refusal with a code of the catalogue. Its message goes to the client: no private address, no credential. */
export class FlotillaError extends Error {
  readonly code: ErrorCode;
  readonly details: ErrorDetails;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message);
    this.name = 'FlotillaError';
    this.code = code;
    this.details = details;
  }

  get status(): number {
    return ERRORS[this.code].status;
  }
}

export function isErrorCode(value: unknown): value is ErrorCode {
  return typeof value === 'string' && Object.hasOwn(ERRORS, value);
}

/** The body every error answer has, in OpenAI's shape. */
export function errorBody(code: ErrorCode, message: string, details: ErrorDetails = {}): ErrorBody {
  return {
    error: { message, type: ERRORS[code].type, code, param: details.param ?? null, ...details.more },
  };
}

/** The headers that tell an SDK whether and when to try again (openai-node reads all three). */
export function retryHeaders(code: ErrorCode, retry_after_ms?: number): Record<string, string> {
  if (!ERRORS[code].retryable) return { 'x-should-retry': 'false' };
  const wait_ms = Math.max(1, Math.round(retry_after_ms ?? 1000));
  return { 'retry-after': String(Math.ceil(wait_ms / 1000)), 'retry-after-ms': String(wait_ms) };
}
