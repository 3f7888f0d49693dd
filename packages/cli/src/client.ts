import { readFile } from 'node:fs/promises';
import type { Command } from 'commander';
import { Flotilla } from '@flotilla/sdk';
import { adminKeyPath, dataDir } from './data-dir.ts';
import { CommandError, UsageError } from './failure.ts';

const DEFAULT_URL = 'http://127.0.0.1:7400';

export interface ClientFlags {
  url?: string;
  apiKey?: string;
  dataDir?: string;
  json?: boolean;
}

/** The options of every command that asks a control plane. */
export function withClient(command: Command): Command {
  return command
    .option('--json', 'print JSON, for programs')
    .optionsGroup('Connection:')
    .option('--url <url>', `the control plane (FLOTILLA_URL, else ${DEFAULT_URL})`)
    .option(
      '--api-key <key>',
      "an API key (FLOTILLA_API_KEY, else on loopback the admin key of 'flotilla up')",
    )
    .option('--data-dir <dir>', 'where that admin key is (FLOTILLA_DATA_DIR, else ~/.flotilla)')
    .optionsGroup('Options:');
}

export function controlUrl({ url }: ClientFlags): string {
  return url ?? (process.env['FLOTILLA_URL'] || DEFAULT_URL);
}

export async function openClient(flags: ClientFlags): Promise<Flotilla> {
  const url = controlUrl(flags);
  if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol)) {
    throw new UsageError(
      `${JSON.stringify(url)} is no address of a control plane.`,
      `Write it like ${DEFAULT_URL}.`,
    );
  }
  const api_key = flags.apiKey ?? (process.env['FLOTILLA_API_KEY'] || (await localKey(url, flags.dataDir)));
  const proxied = isLoopback(url) ? undefined : await proxyFetch();
  return new Flotilla({ url, api_key, ...(proxied === undefined ? {} : { fetch: proxied }) });
}

/** On the machine of `flotilla up`, its user need not carry the key around. */
async function localKey(url: string, flag: string | undefined): Promise<string> {
  if (!isLoopback(url)) {
    throw new CommandError(`No API key for ${url}.`, 'Give one with --api-key or FLOTILLA_API_KEY.');
  }
  const path = adminKeyPath(dataDir(flag));
  try {
    return (await readFile(path, 'utf8')).trim();
  } catch (cause) {
    const reason = (cause as NodeJS.ErrnoException).code === 'ENOENT' ? 'there is no' : 'cannot read';
    throw new CommandError(
      `No API key: FLOTILLA_API_KEY is not set, and ${reason} ${path}.`,
      '`flotilla up` makes that file; for another data directory give --data-dir, for another server --url and --api-key.',
      { cause },
    );
  }
}

export function isLoopback(url: string): boolean {
  const { hostname } = new URL(url);
  return hostname === 'localhost' || hostname === '[::1]' || /^127\.\d+\.\d+\.\d+$/.test(hostname);
}

/** Node's own `fetch` knows no proxies; undici, which costs time to load, is loaded only for them. */
async function proxyFetch(): Promise<typeof globalThis.fetch | undefined> {
  const wanted = ['HTTPS_PROXY', 'https_proxy', 'HTTP_PROXY', 'http_proxy'].some((name) => process.env[name]);
  if (!wanted) return undefined;
  const { EnvHttpProxyAgent, fetch } = await import('undici');
  const dispatcher = new EnvHttpProxyAgent();
  const proxied = (url: string, init?: RequestInit) =>
    fetch(url, { ...(init as Parameters<typeof fetch>[1]), dispatcher });
  return proxied as unknown as typeof globalThis.fetch;
}
