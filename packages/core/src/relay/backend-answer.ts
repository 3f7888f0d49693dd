import { ERRORS, type ErrorCode } from '@flotilla/protocol';
import type { HttpHeaders } from '../ports/http-agent.ts';

/** A failure as the control plane is told it: no address, no words of the backend's own. */
export interface Failure {
  code: ErrorCode;
  message: string;
  retryable: boolean;
  status?: number;
  retry_after_ms?: number;
  /** Whether it says something of the backend's health. */
  unhealthy: boolean;
}

/** The fleet's business, not the client's: another backend may well serve the same request. */
const FLEETS_4XX = new Set([401, 403, 404, 408, 429]);

/** @returns undefined when the answer goes to the client as it is */
export function judgeAnswer(status: number, headers: HttpHeaders): Failure | undefined {
  const retry_after_ms = retryAfter(headers);
  const failure = {
    code: 'backend_error' as const,
    retryable: true,
    status,
    ...(retry_after_ms === undefined ? {} : { retry_after_ms }),
  };
  if (status >= 500 || status < 200 || FLEETS_4XX.has(status)) {
    const busy = status === 429 || status === 408;
    return { ...failure, message: `The backend answered ${status}.`, unhealthy: !busy };
  }
  if (status >= 300 && status < 400) {
    return {
      ...failure,
      message: `The backend redirected (${status}); redirects are not followed.`,
      unhealthy: true,
    };
  }
  const encoding = one(headers['content-encoding']);
  if (encoding !== undefined && encoding.toLowerCase() !== 'identity') {
    return {
      ...failure,
      message: 'The backend compressed its answer although asked not to.',
      unhealthy: true,
    };
  }
  return undefined;
}

/**
 * Whether this is a control plane's word that what it was asked has come through it already. Its body says so: others
 * answer 508, too, where a limit of theirs is reached.
 */
export function tellsOfLoop(status: number, body: string): boolean {
  if (status !== ERRORS.loop_detected.status) return false;
  try {
    const said = JSON.parse(body) as { error?: { code?: unknown } | null } | null;
    return said?.error?.code === ('loop_detected' satisfies ErrorCode);
  } catch {
    return false;
  }
}

/** They name the account whose key was used, which is no client's business. */
const ACCOUNT_HEADERS = new Set(['openai-organization', 'openai-project']);

/** The headers of a backend's answer that reach the client. */
export function passedHeaders(headers: HttpHeaders): Record<string, string> {
  const passed: Record<string, string> = {};
  for (const name in headers) {
    if (
      name !== 'content-type' &&
      name !== 'retry-after' &&
      name !== 'retry-after-ms' &&
      (!name.startsWith('openai-') || ACCOUNT_HEADERS.has(name))
    ) {
      continue;
    }
    const value = one(headers[name]);
    if (value !== undefined) passed[name] = value;
  }
  return passed;
}

/** How long the backend asked to be left alone. */
function retryAfter(headers: HttpHeaders): number | undefined {
  const ms = Number(one(headers['retry-after-ms']) ?? Number.NaN);
  if (isDelay(ms)) return ms;
  const seconds_as_ms = Number(one(headers['retry-after']) ?? Number.NaN) * 1000;
  return isDelay(seconds_as_ms) ? seconds_as_ms : undefined;
}

/** JSON knows no Infinity: a result that said it would be unreadable, and its slot never free. */
function isDelay(ms: number): boolean {
  return ms >= 0 && Number.isFinite(ms);
}

function one(value: string | string[] | undefined): string | undefined {
  return Array.isArray(value) ? value.join(', ') : value;
}

const SENTENCES: Record<string, string> = {
  ECONNREFUSED: 'The backend refused the connection.',
  ECONNRESET: 'The backend reset the connection.',
  EPIPE: 'The backend closed the connection.',
  ENOTFOUND: "The backend's host name is not known.",
  EAI_AGAIN: "The backend's host name could not be looked up.",
  EHOSTUNREACH: "The backend's host cannot be reached.",
  ENETUNREACH: "The backend's network cannot be reached.",
  ETIMEDOUT: 'The connection to the backend timed out.',
  UND_ERR_CONNECT_TIMEOUT: 'The backend did not accept a connection in time.',
  UND_ERR_SOCKET: 'The backend closed the connection.',
  UND_ERR_RES_CONTENT_LENGTH_MISMATCH: 'The backend closed the connection before its answer was whole.',
  UND_ERR_HEADERS_OVERFLOW: "The backend's answer has too many headers.",
  HPE_INVALID_EOF_STATE: 'The backend closed the connection before its answer was whole.',
  ERR_TLS_CERT_ALTNAME_INVALID: "The backend's certificate is for another name.",
  CERT_HAS_EXPIRED: "The backend's certificate has expired.",
};
/** What a TLS handshake says of a certificate that nobody here vouches for. */
export const CERTIFICATE_FAULT = /CERT|SELF_SIGNED|UNABLE_TO|ALTNAME/;

/** A failure of the connection itself. */
export function connectionFailure(error: Error, answering: boolean): Failure {
  const code = codeOf(error);
  const untrusted = code !== undefined && CERTIFICATE_FAULT.test(code);
  const known = code === undefined ? undefined : SENTENCES[code];
  const fallback = untrusted
    ? "The backend's certificate is not trusted."
    : error.name === 'HTTPParserError'
      ? "The backend's answer is not HTTP."
      : 'The connection to the backend failed.';
  const when = answering ? ' in the middle of its answer' : '';
  return {
    code: 'backend_error',
    message: (known ?? fallback).replace(/\.$/, `${when}.`),
    retryable: true,
    unhealthy: true,
  };
}

/**
 * Whether the backend had closed an idle connection just as a request was put on it: nothing was answered, and the
 * connection had served before.
 */
export function wasStaleConnection(error: Error): boolean {
  const code = codeOf(error);
  if (code !== 'UND_ERR_SOCKET' && code !== 'ECONNRESET' && code !== 'EPIPE') return false;
  const socket = (error as { socket?: { bytesRead?: number } | null }).socket;
  return (socket?.bytesRead ?? 0) > 0;
}

function codeOf(error: Error): string | undefined {
  const { code, errors } = error as { code?: unknown; errors?: unknown };
  if (typeof code === 'string') return code;
  // Several addresses were tried: the first one's reason stands for all.
  const first: unknown = Array.isArray(errors) ? errors[0] : undefined;
  return first instanceof Error ? codeOf(first) : undefined;
}
