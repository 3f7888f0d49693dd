import { request as httpRequest } from 'node:http';
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https';
import { type Flotilla, FlotillaApiError } from '@flotilla/sdk';
import { isLoopback } from '../client.ts';
import { type Check, textOf } from './check.ts';

const ROUNDS = 5;
const SKEW_MS = 5000;
const UPGRADE_WITHIN_MS = 10_000;
/** Of the 400 ms between the first and the last event, what has to be left on arrival. */
const APART_MS = 200;

export interface Reached {
  checks: Check[];
  /** There and back, the middle one of a few; null: it is not reached. */
  rtt_ms: number | null;
  /** The key is good. */
  known: boolean;
}

/**
 * The way from here to the control plane, and what lies on it.
 * @param keyless why there is no key to ask with
 */
export async function checkReach(
  client: Flotilla,
  url: string,
  keyless: Check | undefined,
): Promise<Reached> {
  const reached = await roundTrips(client, url);
  if (reached.rtt_ms === null) return { ...reached, known: false };
  const checks = [...reached.checks, ...(await ready(client)), await upgrade(url)];
  const key = keyless ?? (await whoami(client));
  checks.push(key);
  const known = key.state !== 'fail';
  if (known) checks.push(await pulse(client));
  return { checks, rtt_ms: reached.rtt_ms, known };
}

const check = (name: string, state: Check['state'], found: string, next?: string): Check => ({
  area: 'control plane',
  name,
  state,
  found,
  ...(next === undefined ? {} : { next }),
});

async function roundTrips(client: Flotilla, url: string): Promise<Omit<Reached, 'known'>> {
  const times: number[] = [];
  let skew_ms: number | null = null;
  try {
    for (let round = 0; round < ROUNDS; round++) {
      const began = performance.now();
      const asked = Date.now();
      const reply = await client.open('healthz', { signal: AbortSignal.timeout(10_000) });
      await reply.text();
      times.push(performance.now() - began);
      skew_ms ??= skewOf(reply.headers.get('date'), (asked + Date.now()) / 2);
    }
  } catch (error) {
    const next =
      'Is it running, and is that its address? `flotilla up` starts one; --url or FLOTILLA_URL names it.';
    const why = error instanceof FlotillaApiError || error instanceof Error ? textOf(error) : String(error);
    return { checks: [check('reachable', 'fail', why, next)], rtt_ms: null };
  }
  const rtt_ms = times.toSorted((a, b) => a - b)[ROUNDS >> 1]!;
  const proxy = proxyOf(url);
  const way = `${new URL(url).protocol === 'https:' ? 'TLS' : 'plain http'}${proxy === undefined ? '' : `, through ${proxy}`}`;
  const checks = [check('reachable', 'ok', `${url} answers in ${ms(rtt_ms)} (${way})`)];
  if (url.startsWith('http:') && !isLoopback(url)) {
    checks.push(
      check(
        'TLS',
        'warn',
        'keys and prompts travel in clear',
        'Put TLS in front: docs/guides/getting-started.md.',
      ),
    );
  }
  if (skew_ms === null) checks.push(check('clock', 'skip', 'the answers have no date'));
  else if (Math.abs(skew_ms) <= SKEW_MS)
    checks.push(check('clock', 'ok', 'this clock and the server’s agree'));
  else {
    const which = skew_ms > 0 ? 'behind' : 'ahead of';
    const found = `this clock is ${Math.round(Math.abs(skew_ms) / 1000)} s ${which} the server’s`;
    checks.push(
      check('clock', 'warn', found, 'Nothing depends on it, but times and expiries read wrong: use NTP.'),
    );
  }
  return { checks, rtt_ms };
}

/** The header has whole seconds. */
function skewOf(date: string | null, now: number): number | null {
  const server = date === null ? Number.NaN : Date.parse(date);
  return Number.isNaN(server) ? null : server + 500 - now;
}

async function ready(client: Flotilla): Promise<Check[]> {
  try {
    await client.ready();
    return [check('ready', 'ok', 'it serves: its store answers')];
  } catch (error) {
    return [check('ready', 'fail', textOf(error), 'Its log says more.')];
  }
}

async function whoami(client: Flotilla): Promise<Check> {
  try {
    const { name, role, scopes } = await client.whoami();
    const may = role === 'admin' ? 'an admin' : `may: ${scopes.join(', ') || 'nothing'}`;
    return check('API key', 'ok', `${name}, ${may}`);
  } catch (error) {
    return check('API key', 'fail', textOf(error), 'Give a valid one: --api-key or FLOTILLA_API_KEY.');
  }
}

/**
 * Asks for the node link without a credential. Refused as an upgrade, it has arrived; refused as a plain request,
 * something on the way took it out, and no node gets through.
 */
async function upgrade(url: string): Promise<Check> {
  const answered = await askUpgrade(url).catch((error: unknown) => textOf(error));
  if (typeof answered !== 'string' && answered.arrived)
    return check('WebSocket', 'ok', 'upgrades arrive: nodes can connect this way');
  const next =
    'Let the proxy in front pass Upgrade and Connection on (nginx: proxy_http_version 1.1 and both headers).';
  const found =
    typeof answered !== 'string' && answered.status === 401
      ? 'something on the way takes the upgrade out'
      : `the upgrade was answered with ${typeof answered === 'string' ? answered : answered.status}`;
  return check('WebSocket', 'fail', found, next);
}

interface UpgradeAnswer {
  status: number;
  /** The control plane saw an upgrade. */
  arrived: boolean;
}

function askUpgrade(url: string): Promise<UpgradeAnswer> {
  const { promise, resolve, reject } = Promise.withResolvers<UpgradeAnswer>();
  const target = new URL('/node/v1/link', url);
  const secure = target.protocol === 'https:';
  // As a node's link goes: through a proxy only inside TLS.
  const agent = secure && proxyOf(url) !== undefined ? new HttpsAgent({ proxyEnv: process.env }) : undefined;
  const request = (secure ? httpsRequest : httpRequest)(target, {
    ...(agent && { agent }),
    timeout: UPGRADE_WITHIN_MS,
    headers: {
      connection: 'Upgrade',
      upgrade: 'websocket',
      'sec-websocket-version': '13',
      'sec-websocket-key': Buffer.from('flotilla doctor.').toString('base64'),
    },
  });
  request.on('upgrade', (reply, socket) => {
    socket.destroy();
    resolve({ status: reply.statusCode ?? 0, arrived: true });
  });
  request.on('response', (reply) => {
    reply.resume();
    resolve({
      status: reply.statusCode ?? 0,
      arrived: reply.headers['sec-websocket-version'] !== undefined,
    });
  });
  request.on('timeout', () => request.destroy(new Error(`no answer within ${UPGRADE_WITHIN_MS} ms`)));
  request.on('error', reject).end();
  return promise;
}

async function pulse(client: Flotilla): Promise<Check> {
  const began = performance.now();
  const arrived: number[] = [];
  try {
    const reply = await client.open('pulse', { signal: AbortSignal.timeout(10_000) });
    let text = '';
    for await (const chunk of reply.body!) {
      text += Buffer.from(chunk).toString();
      const events = text.split('\n\n').length - 1;
      while (arrived.length < events) arrived.push(performance.now() - began);
    }
  } catch (error) {
    if (error instanceof FlotillaApiError && error.status === 404) {
      return check('streaming', 'skip', 'this control plane is older than the check');
    }
    return check('streaming', 'fail', `a stream of events broke: ${textOf(error)}`);
  }
  const first = arrived[0];
  if (first === undefined) return check('streaming', 'fail', 'a stream of events came without any');
  if (arrived.at(-1)! - first >= APART_MS) {
    return check('streaming', 'ok', `events arrive one by one, the first after ${ms(first)}`);
  }
  return check(
    'streaming',
    'fail',
    `events that are sent 100 ms apart arrive together, after ${ms(first)}: something on the way holds them back`,
    'Turn its buffering off (nginx: proxy_buffering off; no compression of text/event-stream).',
  );
}

export function ms(duration_ms: number): string {
  return `${duration_ms < 10 ? duration_ms.toFixed(1) : Math.round(duration_ms)} ms`;
}

function proxyOf(url: string): string | undefined {
  if (isLoopback(url)) return undefined;
  const names = url.startsWith('https:') ? ['HTTPS_PROXY', 'https_proxy'] : ['HTTP_PROXY', 'http_proxy'];
  const given = names.map((name) => process.env[name]).find((value) => value);
  // It may hold a password.
  return given === undefined ? undefined : URL.canParse(given) ? new URL(given).host : 'a proxy';
}
