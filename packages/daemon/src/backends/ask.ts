import { type Dispatcher, request } from 'undici';

/**
 * One HTTP question to a model server, bounded in time and size. Every outcome is a value: a server that answers
 * nonsense is as much a finding as one that does not answer.
 */
export type Asked =
  | { ok: true; status: number; headers: Record<string, string>; text: string; json: unknown }
  | { ok: false; refused: boolean; timeout: boolean; reason: string };

interface AskOptions {
  body?: unknown;
  timeout_ms?: number;
}
export type Ask = (path: string, options?: AskOptions) => Promise<Asked>;

export interface AskerOptions {
  /** Without a trailing slash. */
  base_url: string;
  headers: Record<string, string>;
  dispatcher: Dispatcher;
  signal: AbortSignal;
}

/** Models are listed within milliseconds; five seconds cover a machine that swaps. */
const ASK_TIMEOUT_MS = 5_000;
/** Ten times the longest list known (a hub with thousands of models). */
const MOST_BYTES = 8 * 1024 * 1024;

export function asker(options: AskerOptions): Ask {
  return async (path, { body, timeout_ms = ASK_TIMEOUT_MS } = {}) => {
    const deadline = AbortSignal.timeout(timeout_ms);
    try {
      const response = await request(`${options.base_url}${path}`, {
        method: body === undefined ? 'GET' : 'POST',
        headers: {
          accept: 'application/json',
          'user-agent': 'flotilla-node',
          ...(body === undefined ? {} : { 'content-type': 'application/json' }),
          ...options.headers,
        },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        dispatcher: options.dispatcher,
        signal: AbortSignal.any([deadline, options.signal]),
      });
      const text = await readText(response.body);
      if (text === null) return failure(`it answered more than ${MOST_BYTES} bytes`);
      const headers = Object.fromEntries(
        Object.entries(response.headers).map(([name, value]) => [name, String(value)]),
      );
      return { ok: true, status: response.statusCode, headers, text, json: parseJson(text) };
    } catch (error) {
      if (deadline.aborted)
        return failure(`it did not answer within ${timeout_ms / 1000} s`, { timeout: true });
      return connectionFailure(error);
    }
  };
}

async function readText(body: Dispatcher.ResponseData['body']): Promise<string | null> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of body as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > MOST_BYTES) return null; // leaving the loop destroys the body
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

const NOTHING_THERE = new Map([
  ['ECONNREFUSED', 'the connection was refused'],
  ['EHOSTUNREACH', 'its host cannot be reached'],
  ['EHOSTDOWN', 'its host is down'],
  ['ENETUNREACH', 'its network cannot be reached'],
  ['ENOTFOUND', 'its host name is not known'],
  ['EAI_AGAIN', 'its host name could not be looked up'],
  ['UND_ERR_CONNECT_TIMEOUT', 'no connection came about in time'],
]);

function connectionFailure(error: unknown): Asked {
  const code = error instanceof Error && 'code' in error ? String(error.code) : '';
  const nothing = NOTHING_THERE.get(code);
  if (nothing !== undefined) return failure(nothing, { refused: true });
  const why = code === '' ? (error as Error).message : code;
  return failure(`the connection broke (${why})`);
}

function failure(reason: string, more: { refused?: boolean; timeout?: boolean } = {}): Asked {
  return { ok: false, refused: more.refused ?? false, timeout: more.timeout ?? false, reason };
}
