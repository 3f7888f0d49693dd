import { Agent } from 'undici';
import { type Address, identify, isModelServer, KINDS, type Opened, type Reach } from './identify.ts';
import type { KindName } from './kind.ts';

export interface Found {
  /** Stable over restarts: its kind, with its port where that is not the kind's usual one. */
  id: string;
  url: string;
  opened: Opened;
}

export interface FindReport {
  found: Found[];
  /** What listens at a usual port but is not used, and why: the first question of an operator who misses one. */
  ignored: { url: string; reason: string }[];
}

export const USUAL_PORTS: readonly number[] = KINDS.flatMap(({ usual_port }) => usual_port ?? []);

/** 127.0.0.1 first: most servers listen there, but some Node servers on `localhost` only on ::1. */
const LOOPBACK = ['127.0.0.1', '[::1]'];

/**
 * Looks for model servers on this machine: any kind at any of the usual ports.
 * @param skip ports that are already in use as configured or found backends
 */
export async function lookAround(
  reach: Reach,
  ports: readonly number[] = USUAL_PORTS,
  skip: ReadonlySet<number> = new Set(),
): Promise<FindReport> {
  const report: FindReport = { found: [], ignored: [] };
  const looks = ports.filter((port) => !skip.has(port)).map((port) => lookAt(port, reach));
  for (const { found, ignored } of await Promise.all(looks)) {
    if (found !== null) report.found.push(found);
    if (ignored !== null) report.ignored.push(ignored);
  }
  return report;
}

async function lookAt(
  port: number,
  reach: Reach,
): Promise<{ found: Found | null; ignored: FindReport['ignored'][number] | null }> {
  let ignored: FindReport['ignored'][number] | null = null;
  for (const host of LOOPBACK) {
    const address: Address = { url: `http://${host}:${port}`, headers: {} };
    const identified = await identify(address, reach);
    if (!identified.ok) {
      if (!identified.refused) ignored ??= { url: address.url, reason: identified.reason };
      continue;
    }
    if (!(await isModelServer(identified.opened, address, reach))) {
      ignored ??= {
        url: address.url,
        reason: 'Its models list is not quite that of a model server; name it as a backend if it is one.',
      };
      continue;
    }
    return {
      found: { id: foundId(identified.opened.kind, port), url: address.url, opened: identified.opened },
      ignored: null,
    };
  }
  return { found: null, ignored };
}

function foundId(kind: KindName, port: number): string {
  const usual = KINDS.some(({ name, usual_port }) => name === kind && usual_port === port);
  return usual ? kind : `${kind}-${port}`;
}

/** One look from outside a daemon, for commands. */
export async function findBackends(ports?: readonly number[]): Promise<{
  found: { id: string; url: string; kind: KindName; models: string[] }[];
  ignored: FindReport['ignored'];
}> {
  const dispatcher = openProbeAgent(2_000);
  try {
    const report = await lookAround({ dispatcher, signal: new AbortController().signal }, ports);
    const found = await Promise.all(
      report.found.map(async ({ id, url, opened }) => {
        const listed = await opened.list();
        return {
          id,
          url,
          kind: opened.kind,
          models: listed.ok ? listed.listing.models.map(({ id: model }) => model) : [],
        };
      }),
    );
    return { found, ignored: report.ignored };
  } finally {
    await dispatcher.close();
  }
}

/**
 * A connection of its own for each question: a kept one says that a server was there, a new one that it is. Proxies
 * are left out of it: backends are near.
 */
export function openProbeAgent(connect_timeout_ms: number): Agent {
  return new Agent({ pipelining: 0, connect: { timeout: connect_timeout_ms } });
}
