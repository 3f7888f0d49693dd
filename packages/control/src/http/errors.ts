import type { Duplex } from 'node:stream';
import {
  type ErrorCode,
  type ErrorDetails,
  errorBody,
  FlotillaError,
  retryHeaders,
} from '@flotilla/protocol';

// Imported, all of `node:http` is read, and with it the client behind `fetch`, which takes as long to load as all of zod.
const { STATUS_CODES } = process.getBuiltinModule('node:http');

/**
 * A refusal that HTTP itself has a status for (405, 415, 426, 431, 408). It keeps that status, because clients and
 * proxies act on it, with the nearest code of the catalogue in the body.
 */
export class HttpError extends FlotillaError {
  readonly #status: number;
  readonly headers: Readonly<Record<string, string>>;

  constructor(
    status: number,
    message: string,
    headers: Record<string, string> = {},
    code: ErrorCode = 'invalid_request',
  ) {
    super(code, message);
    this.#status = status;
    this.headers = headers;
  }

  override get status(): number {
    return this.#status;
  }
}

export interface ErrorAnswer {
  status: number;
  headers: Record<string, string>;
  /** JSON. */
  body: string;
}

/** Every refusal and every fault as the answer a client gets: the one shape, never a stack or a foreign message. */
export function errorAnswer(error: unknown): ErrorAnswer {
  const known = asFlotillaError(error);
  const { code, details } = known;
  return {
    status: known.status,
    headers: {
      'content-type': 'application/json; charset=utf-8',
      ...details.headers,
      ...retryHeaders(code, details.retry_after_ms),
      ...(known.status === 401 && { 'www-authenticate': 'Bearer' }),
      ...(known instanceof HttpError && known.headers),
    },
    body: JSON.stringify(errorBody(code, known.message, retryDetails(details))),
  };
}

/** `retry_after_ms` is told in the body too, for those who cannot see headers. */
function retryDetails(details: ErrorDetails): ErrorDetails {
  const { retry_after_ms } = details;
  if (retry_after_ms === undefined) return details;
  return { ...details, more: { retry_after_ms: Math.round(retry_after_ms), ...details.more } };
}

const INTERNAL = 'A fault of Flotilla itself. The request id finds it in the log.';

export function asFlotillaError(error: unknown): FlotillaError {
  if (error instanceof FlotillaError) return error;
  const { code, statusCode } = (typeof error === 'object' && error !== null ? error : {}) as Partial<
    Record<string, unknown>
  >;
  if (typeof code === 'string' && code.startsWith('FST_ERR_')) return fastifyError(code, statusCode);
  return new FlotillaError('internal', INTERNAL);
}

/** What fastify refuses before a handler runs. Its own messages name its own internals. */
function fastifyError(code: string, status: unknown): FlotillaError {
  switch (code) {
    case 'FST_ERR_BAD_URL':
      return new FlotillaError(
        'invalid_request',
        'The path is not a valid one: a % in it begins no encoded character.',
      );
    case 'FST_ERR_MAX_PARAM_LENGTH':
      return new FlotillaError('not_found', 'The path is longer than any that exists.');
    case 'FST_ERR_CTP_BODY_TOO_LARGE':
      return new FlotillaError('payload_too_large', 'The body is too large.');
    case 'FST_ERR_CTP_INVALID_MEDIA_TYPE':
      return new HttpError(415, 'The content-type header cannot be read; send application/json.');
    default:
      return typeof status === 'number' && status >= 400 && status < 500
        ? new HttpError(status, STATUS_CODES[status] ?? 'The request cannot be read.')
        : new FlotillaError('internal', INTERNAL);
  }
}

/** Answers on a bare socket, where there is no reply object: unreadable requests, upgrades that are refused. */
export function refuseSocket(
  socket: Duplex,
  error: FlotillaError,
  request_id: string,
  more: Record<string, string> = {},
): void {
  // What is sent to a peer that is gone fails; there is nobody to tell.
  socket.on('error', () => {});
  if (!socket.writable) {
    socket.destroy();
    return;
  }
  const { status, headers, body } = errorAnswer(error);
  const all = {
    ...headers,
    ...more,
    'x-request-id': request_id,
    'content-length': String(Buffer.byteLength(body)),
    connection: 'close',
  };
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}`);
  socket.end(`HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ''}\r\n${lines.join('\r\n')}\r\n\r\n${body}`, () =>
    socket.destroy(),
  );
}

/** What Node could not read as HTTP. Undefined: the peer just went away. */
export function clientFault(error: NodeJS.ErrnoException): FlotillaError | undefined {
  switch (error.code) {
    case 'ECONNRESET':
    case 'EPIPE':
      return undefined;
    case 'ERR_HTTP_REQUEST_TIMEOUT':
      return new HttpError(408, 'The request did not arrive in time.');
    case 'HPE_HEADER_OVERFLOW':
      return new HttpError(431, 'The headers are larger than this server reads.');
    case 'HPE_CHUNK_EXTENSIONS_OVERFLOW':
      return new FlotillaError(
        'payload_too_large',
        'The chunk extensions are larger than this server reads.',
      );
    default:
      return new FlotillaError('invalid_request', 'The request is not valid HTTP.');
  }
}
