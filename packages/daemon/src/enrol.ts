import { rm } from 'node:fs/promises';
import { hostname } from 'node:os';
import { CERTIFICATE_FAULT, isThisMachine } from '@flotilla/core';
import { enrolled } from '@flotilla/protocol';
import { Agent, type Dispatcher, EnvHttpProxyAgent, request } from 'undici';
import { z } from 'zod';
import { writeFileAtomically } from './atomic-file.ts';
import { type ConfigFlags, withSettings } from './config.ts';
import { addressText, controlAddress } from './control-address.ts';
import {
  type Credential,
  lockStateDir,
  openStateDir,
  readCredential,
  StateDirError,
  type StatePaths,
  writeCredential,
} from './state-dir.ts';

/**
 * Enrolment: a token, given once by the operator, becomes this node's own credential, which is on disk before anything
 * else happens. A machine that is enrolled at the address already keeps its credential and uses no token.
 */
export interface EnrolOptions {
  state_dir: string;
  url: string;
  token: string;
  /** Otherwise the host's name. */
  name?: string | undefined;
  labels?: Record<string, string> | undefined;
  /** To be kept in `node.yaml`; wrong ones use no token. */
  settings?: ConfigFlags | undefined;
  /** Plain http to another machine is agreed to. */
  insecure?: boolean | undefined;
  timeout_ms?: number | undefined;
}

export interface Enrolment {
  /** False: it was enrolled there before, and the token was not used. */
  fresh: boolean;
  node_id: string;
  name: string;
  url: string;
}

export type EnrolFailure =
  | 'token_unknown'
  | 'token_expired'
  | 'token_used'
  | 'name_taken'
  | 'enrolled_elsewhere'
  | 'unreachable'
  | 'not_flotilla'
  | 'refused';

/** Says what is wrong and what to do next. */
export class EnrolError extends Error {
  override readonly name = 'EnrolError';
  readonly code: EnrolFailure;

  constructor(code: EnrolFailure, message: string) {
    super(message);
    this.code = code;
  }
}

const ENROL_TIMEOUT_MS = 15_000;
const MOST_BYTES = 64 * 1024;
const NEW_TOKEN = 'Make a new one with `flotilla tokens create` where the control plane is administered.';

/** @throws {EnrolError} @throws {AddressError} @throws {ConfigError} @throws {StateDirError} */
export async function enrol(options: EnrolOptions): Promise<Enrolment> {
  const url = controlAddress(options.url, options.insecure ?? false);
  const paths = await openStateDir(options.state_dir);
  const settings = options.settings ?? {};
  const before = await alreadyEnrolled(paths, url);
  // With nothing to write, a daemon that runs there, and so has the lock, is no hindrance.
  if (before !== null && (await withSettings(paths.config, settings)) === null) return before;

  const lock = await lockStateDir(paths);
  try {
    const config = await withSettings(paths.config, settings);
    // Another `join` may have been quicker.
    const enrolment = (await alreadyEnrolled(paths, url)) ?? (await useToken(options, url, paths));
    // It may hold a backend's key.
    if (config !== null) await writeFileAtomically(paths.config, config, 0o600);
    return enrolment;
  } finally {
    lock.release();
  }
}

async function useToken(options: EnrolOptions, url: URL, paths: StatePaths): Promise<Enrolment> {
  await proveWritable(paths);
  const name = options.name ?? hostName();
  const node = await exchange(
    url,
    { token: options.token, name, labels: options.labels ?? {} },
    options.timeout_ms,
  );
  const credential: Credential = {
    url: addressText(url),
    node_id: node.id,
    name: node.name,
    credential: node.credential,
    insecure: options.insecure ?? false,
    enrolled_at: new Date().toISOString(),
  };
  await writeCredential(paths, credential);
  return { fresh: true, node_id: node.id, name: node.name, url: credential.url };
}

async function alreadyEnrolled(paths: StatePaths, url: URL): Promise<Enrolment | null> {
  const kept = await readCredential(paths);
  if (kept === null) return null;
  if (kept.url === addressText(url))
    return { fresh: false, node_id: kept.node_id, name: kept.name, url: kept.url };
  throw new EnrolError(
    'enrolled_elsewhere',
    `This machine is already enrolled at ${kept.url} as ${kept.name}. Leave there first with \`flotilla node leave\`, ` +
      `or give this enrolment a directory of its own with --state-dir (now ${paths.dir}).`,
  );
}

/** A token may work only once: it is not spent on a credential that cannot be kept. */
async function proveWritable(paths: StatePaths): Promise<void> {
  try {
    await writeFileAtomically(`${paths.credential}.check`, '\n', 0o600);
  } catch (error) {
    throw new StateDirError(
      `${paths.dir} cannot be written: ${(error as Error).message}. The token was not used.`,
      { cause: error },
    );
  }
  await rm(`${paths.credential}.check`, { force: true });
}

/** The host's name as a node's name: what is not allowed becomes a dash. */
function hostName(): string {
  const name = hostname()
    .replace(/\.local$/, '')
    .replaceAll(/[^A-Za-z0-9._-]+/g, '-')
    .replace(/^[^A-Za-z0-9]+/, '')
    .slice(0, 63);
  return name === '' ? 'node' : name;
}

type EnrolRequest = { token: string; name: string; labels: Record<string, string> };

async function exchange(
  url: URL,
  body: EnrolRequest,
  timeout_ms = ENROL_TIMEOUT_MS,
): Promise<z.infer<typeof enrolled>> {
  const dispatcher = dispatcherFor(url);
  try {
    const answer = await request(`${addressText(url)}/node/v1/enrol`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', accept: 'application/json' },
      body: JSON.stringify(body),
      dispatcher,
      signal: AbortSignal.timeout(timeout_ms),
    });
    const text = await readText(answer.body);
    return readAnswer(url, body, answer.statusCode, answer.headers['location'], text);
  } catch (error) {
    if (error instanceof EnrolError) throw error;
    throw new EnrolError('unreachable', whyUnreachable(url, error));
  } finally {
    await dispatcher.destroy();
  }
}

/** A proxy is for the way out, not for this machine. */
function dispatcherFor(url: URL): Dispatcher {
  return isThisMachine(url) ? new Agent() : new EnvHttpProxyAgent();
}

async function readText(body: Dispatcher.ResponseData['body']): Promise<string> {
  let text = '';
  for await (const chunk of body.setEncoding('utf8') as AsyncIterable<string>) {
    text += chunk;
    if (text.length > MOST_BYTES) break;
  }
  return text;
}

const errorAnswer = z.object({
  error: z.object({ code: z.string(), message: z.string(), reason: z.string().optional() }).loose(),
});

function readAnswer(
  url: URL,
  sent: EnrolRequest,
  status: number,
  location: unknown,
  text: string,
): z.infer<typeof enrolled> {
  const json = parseJson(text);
  const node = enrolled.safeParse(json);
  if ((status === 200 || status === 201) && node.success) return node.data;
  if (status >= 300 && status < 400) {
    throw new EnrolError(
      'not_flotilla',
      `${url.origin} redirects to ${String(location)}. A token is not sent on: give the control plane's own address.`,
    );
  }
  const refusal = errorAnswer.safeParse(json);
  if (!refusal.success) {
    throw new EnrolError(
      'not_flotilla',
      `${addressText(url)} answers (status ${status}), but not as a Flotilla control plane. Check address and port ` +
        '(7400 by default), and what stands before it.',
    );
  }
  const { code, message, reason } = refusal.data.error;
  throw explain(sent, code, message, reason ?? '');
}

/** The refusal's `reason` tells which; an older control plane has only its sentence. */
function explain(sent: EnrolRequest, code: string, message: string, reason: string): EnrolError {
  const says = `${reason} ${message}`.toLowerCase();
  if (code === 'name_taken') {
    return new EnrolError(
      'name_taken',
      `Another node is called ${sent.name}. Give this one another name with --name; if it is this machine, enrolled ` +
        `before, delete the old node first: \`flotilla nodes delete ${sent.name}\`.`,
    );
  }
  if (code === 'unauthorized' || code === 'forbidden' || code === 'not_found') {
    if (says.includes('expired'))
      return new EnrolError('token_expired', `The enrolment token has expired. ${NEW_TOKEN}`);
    if (/\bused\b|token_used/.test(says))
      return new EnrolError('token_used', `The enrolment token has been used up. ${NEW_TOKEN}`);
    return new EnrolError(
      'token_unknown',
      `The control plane does not know this enrolment token. Check that it is whole (it begins with fle_). ${NEW_TOKEN}`,
    );
  }
  return new EnrolError('refused', `The control plane refused the enrolment (${code}): ${message}`);
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function whyUnreachable(url: URL, error: unknown): string {
  const code = error instanceof Error && 'code' in error ? String(error.code) : '';
  const place = addressText(url);
  if (error instanceof Error && error.name === 'TimeoutError') {
    return `${place} did not answer in time. Check that a firewall lets this machine reach it, then try again.`;
  }
  if (code === 'ECONNREFUSED')
    return `Nothing listens at ${place}. Check the port, and that the control plane runs.`;
  if (code === 'ENOTFOUND' || code === 'EAI_AGAIN')
    return `The host name ${url.hostname} cannot be looked up. Check the address.`;
  if (CERTIFICATE_FAULT.test(code)) {
    return (
      `The certificate of ${place} is not trusted (${code}). If it is your own authority's, give its certificate in ` +
      'NODE_EXTRA_CA_CERTS.'
    );
  }
  if (code === 'ERR_SSL_WRONG_VERSION_NUMBER' || code.startsWith('ERR_SSL')) {
    return `${place} does not speak TLS. If it is plain http on this machine or a private network, write http://.`;
  }
  return `${place} cannot be reached (${code === '' ? (error as Error).message : code}). Check the address and the network, then try again.`;
}
