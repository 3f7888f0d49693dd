import { networkInterfaces } from 'node:os';
import type { Servable } from './servable.ts';

/** A word as a shell takes it for itself. */
export function shellWord(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

const REQUESTS = {
  chat: { path: 'chat/completions', body: { messages: [{ role: 'user', content: 'Hello!' }] } },
  completions: { path: 'completions', body: { prompt: 'Hello!' } },
  embeddings: { path: 'embeddings', body: { input: 'Hello!' } },
} as const;

/** A request that works as it is printed. The key stays in its file. */
export function curlFor(url: string, key_path: string, { model, operation }: Servable): string {
  const { path, body } = REQUESTS[operation];
  return [
    `curl ${shellWord(`${url}/v1/${path}`)}`,
    `-H "Authorization: Bearer $(cat ${shellWord(key_path)})"`,
    `-H 'content-type: application/json'`,
    `-d ${shellWord(JSON.stringify({ model, ...body }))}`,
  ].join(' \\\n    ');
}

export type Reach =
  /** Others reach it at this address. */
  { url: string; insecure: boolean } | { url: null; advice: string[] };

/** Whether other machines can reach a control plane that listens like this, and how they could. */
export function reachOf(host: string, port: number, public_url: string | undefined): Reach {
  if (public_url !== undefined) return { url: public_url, insecure: public_url.startsWith('http://') };
  if (!isLoopbackHost(host)) {
    const address = host === '0.0.0.0' || host === '::' ? lanAddress() : host;
    if (address !== undefined) {
      return { url: `http://${address.includes(':') ? `[${address}]` : address}:${port}`, insecure: true };
    }
  }
  const lan = lanAddress() ?? 'ADDRESS';
  return {
    url: null,
    advice: [
      `Only this machine reaches ${host}. For others, start it in one of these ways:`,
      `  flotilla up --host 0.0.0.0                        in a private network (then http://${lan}:${port})`,
      '  flotilla up --public-url https://fleet.example    behind a tunnel or proxy with TLS',
    ],
  };
}

function isLoopbackHost(host: string): boolean {
  return host === 'localhost' || host === '::1' || host.startsWith('127.');
}

export function lanAddress(): string | undefined {
  const all = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? []);
  return all.find(({ family, internal }) => family === 'IPv4' && !internal)?.address;
}
