/**
 * The one error catalogue. Every refusal that leaves Flotilla, over HTTP, in a stream or on a node link, has one of
 * these codes. docs/reference/errors.md is made from it, and the SDK has the same codes (tests/reference.test.ts).
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
  /** What it means, and what to do next: for the reference. */
  readonly meaning: string;
  readonly next: string;
}

const entry = (
  status: number,
  type: string,
  retryable: boolean,
  meaning: string,
  next: string,
): ErrorEntry => ({ status, type, retryable, meaning, next });

export const ERRORS = {
  invalid_request: entry(
    400,
    'invalid_request_error',
    false,
    'The request is malformed; `param` names the part.',
    'Mend that part.',
  ),
  unauthorized: entry(
    401,
    'authentication_error',
    false,
    'No credential, or one that is not known.',
    'Send `Authorization: Bearer …` with a key of this control plane: `flotilla keys create`.',
  ),
  insufficient_credit: entry(
    402,
    'insufficient_quota',
    false,
    "The key's token budget is used up.",
    'Ask an administrator for more, or for another key.',
  ),
  forbidden: entry(
    403,
    'permission_error',
    false,
    'The credential is known but may not do this.',
    'Use a key with the scope that the message names: `flotilla keys update --scope`.',
  ),
  revoked: entry(
    403,
    'permission_error',
    false,
    'The credential was withdrawn; a node stops for good.',
    'Use another key; a machine that should come back is enrolled anew.',
  ),
  not_found: entry(
    404,
    'not_found_error',
    false,
    'No such thing, or not one that this key may see.',
    'List what there is, and look at the id.',
  ),
  model_not_found: entry(
    404,
    'not_found_error',
    false,
    'No node or route has ever offered this model.',
    'See `flotilla models`; for a model that should be there, `flotilla nodes show`.',
  ),
  conflict: entry(
    409,
    'conflict_error',
    false,
    'The thing is not in a state that allows this.',
    'Look at it again: the message says which state it is in.',
  ),
  name_taken: entry(
    409,
    'conflict_error',
    false,
    'Another node has this name.',
    'Join with `--name`, or delete the old node: `flotilla nodes delete`.',
  ),
  node_in_use: entry(
    409,
    'conflict_error',
    true,
    'Another daemon with this credential is connected and alive.',
    'Stop one of the two; a machine made from the image of another has to join by itself.',
  ),
  wrong_session: entry(
    409,
    'conflict_error',
    false,
    'The session belongs to another replica or has ended.',
    'Register anew.',
  ),
  payload_too_large: entry(
    413,
    'invalid_request_error',
    false,
    'The body or frame exceeds its limit.',
    'Send less, or raise `FLOTILLA_BODY_LIMIT_BYTES`.',
  ),
  rate_limited: entry(
    429,
    'rate_limit_error',
    true,
    "One of the key's limits is reached.",
    'Wait as long as `Retry-After` says.',
  ),
  queue_full: entry(
    429,
    'rate_limit_error',
    true,
    'Too many requests already wait for this model.',
    'Wait as long as `Retry-After` says; more slots or nodes help for good.',
  ),
  cancelled: entry(
    499,
    'cancelled',
    false,
    'The client or an operator cancelled the work.',
    'Nothing; send it again if it is still wanted.',
  ),
  internal: entry(
    500,
    'server_error',
    true,
    'A fault of Flotilla itself; the request id finds it in the log.',
    'Try again; report it with what the log says about the request id.',
  ),
  backend_error: entry(
    502,
    'server_error',
    true,
    'The model server failed and no other could serve.',
    'Try again; `flotilla jobs show` names the node and what its model server said.',
  ),
  attempts_exhausted: entry(
    502,
    'server_error',
    true,
    'Every allowed attempt failed; `attempts` tells each story.',
    'Read the stories, also in `flotilla jobs show`; the nodes named there need a look.',
  ),
  loop_detected: entry(
    508,
    'server_error',
    false,
    'A provider leads back to a control plane that the request has come through already.',
    'Change the address of the provider that the message names, or the route: `flotilla providers`.',
  ),
  origin_lost: entry(
    502,
    'server_error',
    false,
    'The node that held the work never came back.',
    'Look after the machine, then send the work again.',
  ),
  no_capacity: entry(
    503,
    'server_error',
    true,
    'The model is known but no node can serve it now.',
    '`flotilla nodes` says what each node lacks.',
  ),
  node_lost: entry(
    503,
    'server_error',
    true,
    'The node vanished while the answer was under way.',
    'Send it again: another node takes it.',
  ),
  unavailable: entry(
    503,
    'server_error',
    true,
    'The control plane cannot record work now, or is stopping.',
    'Try again; `/readyz` says what is missing.',
  ),
  queue_timeout: entry(
    504,
    'timeout_error',
    true,
    'No slot became free before the queue deadline.',
    'Try again later; `flotilla nodes` shows whose slots are taken.',
  ),
  run_timeout: entry(
    504,
    'timeout_error',
    false,
    'The work ran longer than its limit.',
    'Ask for less, or raise `FLOTILLA_RUN_TIMEOUT_MS`.',
  ),
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
