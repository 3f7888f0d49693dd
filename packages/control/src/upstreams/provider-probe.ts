import { CERTIFICATE_FAULT, type RelayBackend, tellsOfLoop, viaOf } from '@flotilla/core';
import { type Dispatcher, request } from 'undici';

/** What a provider's list of models says of it. */
export type Probed =
  | { kind: 'well'; models: string[] | null }
  /** It does not take our key. */
  | { kind: 'refused'; status: number }
  /** It is this control plane. */
  | { kind: 'loops' }
  /** `unreachable`: no request would get through either. */
  | { kind: 'failed'; reason: string; unreachable: boolean };

const ANSWER_MS = 10_000;
const MOST_BYTES = 8 * 1024 * 1024;
const MOST_MODELS = 1000;
const UNREACHABLE: Record<string, string> = {
  ECONNREFUSED: 'the connection was refused',
  EHOSTUNREACH: 'its host cannot be reached',
  ENETUNREACH: 'its network cannot be reached',
  ENOTFOUND: 'its host name is not known',
  UND_ERR_CONNECT_TIMEOUT: 'no connection came about in time',
  UND_ERR_ABORTED: 'the proxy (HTTPS_PROXY) does not lead to it',
  ERR_TLS_CERT_ALTNAME_INVALID:
    'its certificate is for other names than that of its address: look at its base_url',
  CERT_HAS_EXPIRED: 'its certificate has expired: it, or the clock of this machine, has to be set right',
  CERT_NOT_YET_VALID:
    'its certificate is not valid yet: it, or the clock of this machine, has to be set right',
};

/**
 * Asks for the list of models: it costs nothing, and proves the way there and the key. An API that has no such list
 * (404, 405, 501) is taken as well; a busy one (429) too: what it can do, requests show.
 */
export async function probeProvider(
  agent: Dispatcher,
  backend: RelayBackend,
  pseudonym: string,
  connect_timeout_ms: number,
  signal: AbortSignal,
): Promise<Probed> {
  const deadline = AbortSignal.timeout(connect_timeout_ms + ANSWER_MS);
  try {
    const { statusCode, body } = await request(`${backend.origin}${backend.prefix}/models`, {
      dispatcher: agent,
      headers: [...backend.headers, 'accept', 'application/json', 'via', viaOf([pseudonym])],
      signal: AbortSignal.any([deadline, signal]),
    });
    const text = await readText(body);
    if (statusCode === 401 || statusCode === 403) return { kind: 'refused', status: statusCode };
    if (text !== null && tellsOfLoop(statusCode, text)) return { kind: 'loops' };
    if (statusCode === 200) return { kind: 'well', models: text === null ? null : modelsOf(text) };
    if (statusCode < 500 && (statusCode < 300 || statusCode >= 400)) return { kind: 'well', models: null };
    if (statusCode === 501) return { kind: 'well', models: null };
    return { kind: 'failed', reason: `its list of models answered ${statusCode}`, unreachable: false };
  } catch (error) {
    if (deadline.aborted) {
      return { kind: 'failed', reason: 'its list of models did not come in time', unreachable: false };
    }
    const { code } = error as { code?: unknown };
    const why = typeof code === 'string' ? whyUnreachable(code) : undefined;
    // The error's own message may name an address, and is nobody's to read here.
    const broke = typeof code === 'string' ? `the connection broke (${code})` : 'the connection broke';
    return { kind: 'failed', reason: why ?? broke, unreachable: why !== undefined };
  }
}

function whyUnreachable(code: string): string | undefined {
  if (code in UNREACHABLE || !CERTIFICATE_FAULT.test(code)) return UNREACHABLE[code];
  return `its certificate is not trusted (${code}); give an authority of your own in NODE_EXTRA_CA_CERTS`;
}

async function readText(body: AsyncIterable<Buffer>): Promise<string | null> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of body) {
    length += chunk.length;
    if (length > MOST_BYTES) return null; // leaving the loop ends the answer
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

function modelsOf(text: string): string[] | null {
  try {
    const { data } = JSON.parse(text) as { data?: unknown };
    if (!Array.isArray(data)) return null;
    return data
      .map((entry: unknown) => (entry as { id?: unknown } | null)?.id)
      .filter((id) => typeof id === 'string' && id.length > 0 && id.length <= 256)
      .slice(0, MOST_MODELS) as string[];
  } catch {
    return null;
  }
}
