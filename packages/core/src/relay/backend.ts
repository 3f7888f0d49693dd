import type { Operation } from '@flotilla/protocol';

const PATHS: Record<Operation, string> = {
  chat: '/chat/completions',
  completions: '/completions',
  embeddings: '/embeddings',
};

/** An OpenAI-compatible server as the relay asks it: where, how, and what was learnt about it. */
export interface RelayBackend {
  readonly origin: string;
  readonly prefix: string;
  /** Name and value in turn. */
  readonly headers: readonly string[];
  /** What it is asked with: never in what is passed on of its answers. */
  readonly secret: string | undefined;
  readonly idle_timeout_ms: number | undefined;
  /** It answered 400 or 422 to `stream_options.include_usage` and served without: it is not asked for it again. */
  refuses_usage: boolean;
}

interface RelayAddress {
  /** With its path prefix: `http://127.0.0.1:11434/v1`. */
  base_url: string;
  /** Its credential, if it wants one, and nothing else: as the header that it is sent in. */
  headers: Record<string, string>;
  idle_timeout_ms?: number | undefined;
}

/** @throws TypeError if the address is none */
export function relayBackend(address: RelayAddress, user_agent: string): RelayBackend {
  const url = new URL(address.base_url);
  const own = Object.entries(address.headers).flat();
  return {
    origin: url.origin,
    prefix: url.pathname.replace(/\/+$/, ''),
    headers: [
      'content-type',
      'application/json',
      'accept-encoding',
      'identity',
      'user-agent',
      user_agent,
      ...own,
    ],
    secret: own[1]?.replace(/^Bearer /, '') || undefined,
    idle_timeout_ms: address.idle_timeout_ms,
    refuses_usage: false,
  };
}

export function pathOf(backend: RelayBackend, operation: Operation): string {
  return backend.prefix + PATHS[operation];
}
