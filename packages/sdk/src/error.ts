import type { ErrorCode } from '@flotilla/protocol';

/** What can go wrong on the client's own side of the wire, beside the protocol's catalogue. */
export type ClientErrorCode =
  /** No connection, or it broke before an answer. */
  | 'unreachable'
  /** Nothing within the client's `timeout_ms`. */
  | 'timed_out'
  /** Something answered, but not in Flotilla's language: probably another server at this address. */
  | 'unreadable'
  /** The connection broke within the answer, or a stream ended without `[DONE]`: the answer is not whole. */
  | 'cut';

/**
 * Whether the same call may succeed later, for every code. The protocol's catalogue is imported as a type only, so its
 * answers stand here again; tests/reference.test.ts holds the two equal.
 */
export const RETRYABLE: Readonly<Record<ErrorCode | ClientErrorCode, boolean>> = {
  invalid_request: false,
  unauthorized: false,
  insufficient_credit: false,
  forbidden: false,
  revoked: false,
  not_found: false,
  model_not_found: false,
  conflict: false,
  name_taken: false,
  node_in_use: true,
  wrong_session: false,
  payload_too_large: false,
  rate_limited: true,
  queue_full: true,
  cancelled: false,
  internal: true,
  backend_error: true,
  attempts_exhausted: true,
  loop_detected: false,
  origin_lost: false,
  no_capacity: true,
  node_lost: true,
  unavailable: true,
  queue_timeout: true,
  run_timeout: false,
  unreachable: true,
  timed_out: true,
  unreadable: false,
  cut: true,
};

interface Facts {
  code: string;
  /** HTTP status; 0 when there was no answer, or when the error came inside a stream. */
  status?: number;
  request_id?: string | undefined;
  retry_after_ms?: number | undefined;
  param?: string | null | undefined;
  cause?: unknown;
}

/** Every failure of a call, except an abort: that one throws the signal's own reason. */
export class FlotillaApiError extends Error {
  /** A code of the error catalogue, or a `ClientErrorCode`; a newer server may send one that is not listed yet. */
  readonly code: ErrorCode | ClientErrorCode | (string & {});
  readonly status: number;
  readonly request_id: string | undefined;
  /** How long the server asks to wait before the same request is worth repeating. */
  readonly retry_after_ms: number | undefined;
  /** The part of the request at fault. */
  readonly param: string | undefined;

  constructor(message: string, facts: Facts) {
    super(message, facts.cause === undefined ? undefined : { cause: facts.cause });
    this.name = 'FlotillaApiError';
    this.code = facts.code;
    this.status = facts.status ?? 0;
    this.request_id = facts.request_id;
    this.retry_after_ms = facts.retry_after_ms;
    this.param = facts.param ?? undefined;
  }

  /** Whether the same call may succeed later; of a code that is not listed, whether the server said when. */
  get retryable(): boolean {
    return Object.hasOwn(RETRYABLE, this.code)
      ? RETRYABLE[this.code as ErrorCode]
      : this.retry_after_ms !== undefined;
  }
}

/** Reads the error of an answer whose status is not a success. */
export async function errorOfResponse(response: Response): Promise<FlotillaApiError> {
  const text = await response.text().catch(() => '');
  const facts = {
    status: response.status,
    request_id: response.headers.get('x-request-id') ?? undefined,
    retry_after_ms: retryAfter(response.headers),
  };
  const error = errorObject(parse(text));
  if (error !== undefined) {
    return new FlotillaApiError(error.message, { ...facts, code: error.code, param: error.param });
  }
  return new FlotillaApiError(
    `HTTP ${response.status} without an error of Flotilla's kind. Is ${origin(response.url)} a Flotilla control plane?`,
    { ...facts, code: 'unreadable' },
  );
}

/** The error inside an event of a stream, if the event is one. */
export function errorOfEvent(value: unknown, request_id: string | undefined): FlotillaApiError | undefined {
  const error = errorObject(value);
  return error && new FlotillaApiError(error.message, { code: error.code, param: error.param, request_id });
}

function errorObject(value: unknown): { message: string; code: string; param: string | null } | undefined {
  if (typeof value !== 'object' || value === null || !('error' in value)) return undefined;
  const { error } = value;
  if (typeof error !== 'object' || error === null) return undefined;
  const { message, code, type, param } = error as Record<string, unknown>;
  return {
    message: typeof message === 'string' ? message : 'An error without a message.',
    code: typeof code === 'string' ? code : typeof type === 'string' ? type : 'internal',
    param: typeof param === 'string' ? param : null,
  };
}

/** `retry-after-ms`, else `retry-after` in seconds; dates are not worth trusting a second machine's clock for. */
function retryAfter(headers: Headers): number | undefined {
  const exact_ms = Number.parseFloat(headers.get('retry-after-ms') ?? '');
  if (exact_ms >= 0) return exact_ms;
  const seconds = Number.parseFloat(headers.get('retry-after') ?? '');
  return seconds >= 0 ? seconds * 1000 : undefined;
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function origin(url: string): string {
  return URL.canParse(url) ? new URL(url).origin : 'this address';
}
