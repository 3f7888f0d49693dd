import { readFile } from 'node:fs/promises';
import { isDeepStrictEqual } from 'node:util';
import { nearest } from '@flotilla/core';
import { labelsSchema, modelIdSchema, operationSchema } from '@flotilla/protocol';
import { parse as parseYaml, parseDocument } from 'yaml';
import { z } from 'zod';
import { KIND_NAMES } from './backends/kind.ts';
import { LOG_LEVELS } from './log.ts';

/**
 * The daemon's settings, once: `node.yaml`, environment and flags are read by this schema. Flags outrank the
 * environment, the environment outranks the file; a list or a map given by one replaces that of the other whole.
 */
const httpUrl = z
  .string()
  .meta({ format: 'uri' })
  .transform((text, context) => {
    const url = URL.canParse(text) ? new URL(text) : null;
    if (url === null || (url.protocol !== 'http:' && url.protocol !== 'https:')) {
      context.addIssue({ code: 'custom', message: `${JSON.stringify(text)} is no http or https address.` });
      return z.NEVER;
    }
    if (url.username !== '' || url.password !== '') {
      context.addIssue({ code: 'custom', message: 'An address holds no user or password; use api_key.' });
      return z.NEVER;
    }
    return `${url.origin}${url.pathname.replace(/\/+$/, '')}`;
  });

const list = (value: string): string[] =>
  value
    .split(',')
    .map((item) => item.trim())
    .filter((item) => item !== '');

const slots = z.number().int().min(1).max(100_000);
const probe = z.enum(['generate', 'list']);
const port = z.number().int().min(0).max(65_535);
const duration_ms = z.number().int().positive().max(86_400_000);

const backendSettingsSchema = z.strictObject({
  id: z
    .string()
    .regex(
      /^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$/,
      'Letters, digits, dot, colon, dash and underscore; 64 at most.',
    )
    .optional()
    .describe('Its name on this node; otherwise host and port.'),
  url: httpUrl.describe('Where it listens, with or without /v1.'),
  kind: z.enum(KIND_NAMES).optional().describe('What it is; otherwise found out by asking it.'),
  slots: slots
    .optional()
    .describe('How many requests it takes at once; otherwise what it says itself, else 4.'),
  api_key: z.string().min(1).optional().describe('Sent to it as a bearer token; never leaves this machine.'),
  idle_timeout_ms: duration_ms.optional().describe('Longest silence between two pieces of an answer.'),
  probe: probe
    .optional()
    .describe(
      'generate: also prove it by a one-token answer; list: only ask for its models. Otherwise by its kind.',
    ),
  operations: z
    .array(operationSchema)
    .min(1)
    .optional()
    .describe('What all its models can do, for a server that does not tell.'),
  models: z
    .array(modelIdSchema)
    .min(1)
    .max(2000)
    .optional()
    .describe('Models that it serves without listing them: for a server that has no list, or keeps it back.'),
});
export type BackendSettings = z.infer<typeof backendSettingsSchema>;

export const configSchema = z.strictObject({
  control_url: z
    .string()
    .transform((text) => list(text))
    .pipe(z.array(httpUrl).min(1).max(16))
    .transform((addresses) => addresses.join(','))
    .optional()
    .describe(
      "The control plane's address, when it has moved since this node enrolled; otherwise the enrolled one. " +
        'Of several replicas all addresses may be given, with commas: where one lets nobody in, the next is dialled at once.',
    ),
  labels: labelsSchema
    .default({})
    .describe('Said of this node, for placement; those of its enrolment token stay.'),
  region: z.string().min(1).max(128).optional().describe('Where this node is.'),
  backends: z
    .array(backendSettingsSchema)
    .max(256)
    .default([])
    .describe('Model servers to use, beside those found.'),
  find_backends: z
    .boolean()
    .default(true)
    .describe('Look for model servers at their usual ports on loopback.'),
  slots: slots
    .optional()
    .describe('How many requests each backend takes at once, where it has no number of its own.'),
  probe: probe
    .optional()
    .describe('Of backends that have none of their own: generate also proves them by a one-token answer.'),
  status_port: port
    .default(7401)
    .describe(
      'Loopback port of the status server; a free one is taken when it is in use, and 0 asks for that.',
    ),
  drain_timeout_ms: z
    .number()
    .int()
    .min(0)
    .max(86_400_000)
    .default(60_000)
    .describe(
      'How long SIGTERM lets running work finish. One minute ends most answers, and is within the 90 s after which ' +
        'systemd kills.',
    ),
  connect_timeout_ms: duration_ms
    .default(5_000)
    .describe('To reach the control plane or a backend: a live host answers in far less.'),
  idle_timeout_ms: duration_ms
    .optional()
    .describe(
      'Longest silence of a backend between two pieces of an answer; otherwise what each request brings.',
    ),
  heartbeat_stale_ms: z
    .number()
    .int()
    .min(2_000)
    .max(3_600_000)
    .default(60_000)
    .describe(
      'Age at which readers of heartbeat.json give the daemon up; it is written four times as often.',
    ),
  log_level: z
    .enum(LOG_LEVELS)
    .default('info')
    .describe('What the log has; no level prints a request, an answer or a credential.'),
});
export type Config = z.infer<typeof configSchema>;
/** What a file or a command gives: everything may be left out. */
type ConfigInput = z.input<typeof configSchema>;
/** A command's flags; what it was not given stays undefined. */
export type ConfigFlags = { [K in keyof ConfigInput]?: ConfigInput[K] | undefined };

/** What an operator wrote is wrong; `usage` errors end a command with exit code 2. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
}

// Text that is no number stays text, so that the schema says what was expected.
const number = (text: string): unknown =>
  text.trim() === '' || Number.isNaN(Number(text)) ? text : Number(text);
const boolean = (text: string): unknown =>
  ({ '1': true, true: true, yes: true, '0': false, false: false, no: false })[text] ?? text;
const text = (value: string): unknown => value;
const pairs = (value: string): unknown =>
  Object.fromEntries(list(value).map((pair) => [pair.split('=')[0], pair.split('=').slice(1).join('=')]));
const urls = (value: string): unknown => list(value).map((url) => ({ url }));

/** Every variable the daemon reads (beside the state directory's own) and the setting it gives. */
export const ENVIRONMENT: Record<string, { setting: keyof Config; read: (text: string) => unknown }> = {
  FLOTILLA_NODE_CONTROL_URL: { setting: 'control_url', read: text },
  FLOTILLA_NODE_LABELS: { setting: 'labels', read: pairs },
  FLOTILLA_NODE_REGION: { setting: 'region', read: text },
  FLOTILLA_NODE_BACKENDS: { setting: 'backends', read: urls },
  FLOTILLA_NODE_FIND_BACKENDS: { setting: 'find_backends', read: boolean },
  FLOTILLA_NODE_SLOTS: { setting: 'slots', read: number },
  FLOTILLA_NODE_PROBE: { setting: 'probe', read: text },
  FLOTILLA_NODE_STATUS_PORT: { setting: 'status_port', read: number },
  FLOTILLA_NODE_DRAIN_TIMEOUT_MS: { setting: 'drain_timeout_ms', read: number },
  FLOTILLA_NODE_HEARTBEAT_STALE_MS: { setting: 'heartbeat_stale_ms', read: number },
  FLOTILLA_CONNECT_TIMEOUT_MS: { setting: 'connect_timeout_ms', read: number },
  FLOTILLA_IDLE_TIMEOUT_MS: { setting: 'idle_timeout_ms', read: number },
  FLOTILLA_LOG_LEVEL: { setting: 'log_level', read: text },
};

export interface ConfigSources {
  /** `node.yaml`'s place, for messages, and its text. */
  file?: { path: string; text: string } | undefined;
  environment?: NodeJS.ProcessEnv | undefined;
  flags?: ConfigFlags | undefined;
}

/** Reads all sources as one. @throws {ConfigError} naming each wrong setting and where it was given */
export function readConfig({ file, environment = {}, flags = {} }: ConfigSources): Config {
  const fromFile = file === undefined ? {} : readYaml(file);
  const merged: Record<string, unknown> = { ...fromFile };
  const givenBy = new Map<string, string>();
  for (const [name, { setting, read }] of Object.entries(ENVIRONMENT)) {
    const value = environment[name];
    if (value === undefined || value === '') continue;
    merged[setting] = read(value);
    givenBy.set(setting, name);
  }
  for (const [setting, value] of Object.entries(flags)) {
    if (value === undefined) continue;
    merged[setting] = value;
    givenBy.set(setting, `--${setting.replaceAll('_', '-')}`);
  }
  const parsed = configSchema.safeParse(merged);
  if (!parsed.success) {
    const lines = parsed.error.issues.flatMap((issue) => describe(issue, givenBy, file?.path ?? 'node.yaml'));
    throw new ConfigError(lines.join('\n'));
  }
  refuseEqualIds(parsed.data.backends);
  return Object.freeze(parsed.data);
}

/** Reads `node.yaml` (none is fine) with the environment and flags over it. */
export async function loadConfig(path: string, sources: Omit<ConfigSources, 'file'> = {}): Promise<Config> {
  const text = await readOrNull(path);
  return readConfig({ ...sources, file: text === null ? undefined : { path, text } });
}

/**
 * The text of `node.yaml` with settings put into it, its comments and other settings kept, so that a daemon started
 * without the flags (by a service manager) runs with what `join` was given.
 * @returns `null` when it has them already
 * @throws {ConfigError} when it could not be read again
 */
export async function withSettings(path: string, settings: ConfigFlags): Promise<string | null> {
  const before = (await readOrNull(path)) ?? '';
  const kept = readYaml({ path, text: before });
  const changed = Object.entries(settings).filter(
    ([setting, value]) => value !== undefined && !isDeepStrictEqual(value, kept[setting]),
  );
  if (changed.length === 0) return null;
  const document = parseDocument(before);
  for (const [setting, value] of changed) document.set(setting, value);
  const text = document.toString();
  readConfig({ file: { path, text } });
  return text;
}

/** Variables that look like the daemon's but are not: most likely mistyped, so start-up says so. */
export function unknownVariables(environment: NodeJS.ProcessEnv): string[] {
  const known = [...Object.keys(ENVIRONMENT), 'FLOTILLA_NODE_STATE_DIR'];
  return Object.keys(environment)
    .filter((name) => name.startsWith('FLOTILLA_NODE_') && !known.includes(name))
    .map((name) => `${name} is not a setting${suggestion(name, known)}`);
}

async function readOrNull(path: string): Promise<string | null> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw new ConfigError(`${path} cannot be read: ${(error as Error).message}`, { cause: error });
  }
}

function readYaml({ path, text }: { path: string; text: string }): Record<string, unknown> {
  let value: unknown;
  try {
    value = parseYaml(text);
  } catch (error) {
    throw new ConfigError(`${path}: ${(error as Error).message}`, { cause: error });
  }
  if (value === null || value === undefined) return {};
  if (typeof value !== 'object' || Array.isArray(value)) {
    throw new ConfigError(`${path}: settings are written as \`name: value\`.`);
  }
  return value as Record<string, unknown>;
}

function describe(issue: z.core.$ZodIssue, givenBy: Map<string, string>, path: string): string[] {
  const setting = String(issue.path[0] ?? '');
  const source = givenBy.get(setting);
  const place =
    source === undefined ? `${path}: ${issue.path.join('.')}` : [source, ...issue.path.slice(1)].join('.');
  if (issue.code !== 'unrecognized_keys') return [`${place}: ${issue.message}`];
  const known = Object.keys(setting === 'backends' ? backendSettingsSchema.shape : configSchema.shape);
  return issue.keys.map((key) => {
    const full = [...issue.path, key].join('.');
    return `${source ?? path}: ${full} is not a setting${suggestion(key, known)}`;
  });
}

function suggestion(name: string, known: readonly string[]): string {
  const near = nearest(name, known);
  return near === undefined ? '.' : `; did you mean ${near}?`;
}

function refuseEqualIds(backends: BackendSettings[]): void {
  const ids = backends.flatMap((backend) => backend.id ?? []);
  const twice = ids.find((id, index) => ids.indexOf(id) !== index);
  if (twice !== undefined) throw new ConfigError(`backends: two have the id ${JSON.stringify(twice)}.`);
}
