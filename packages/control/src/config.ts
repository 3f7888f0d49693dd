import { homedir } from 'node:os';
import { join } from 'node:path';
import { nearest } from '@flotilla/core';
import { z } from 'zod';
import { isNetwork } from './http/client-address.ts';
import { LOG_LEVELS } from './telemetry/log.ts';

/**
 * Every setting of the control plane, once: its variable, its type, its default and the reason for it. Flags outrank
 * the environment. Read once at start, frozen after; nothing else reads `process.env`.
 */
const MIB = 1024 * 1024;

/** `variable`: where it is read from; of two, the first that is set counts. `secret`: its value is never repeated. */
interface SettingMeta {
  variable: readonly [string, ...string[]];
  why: string;
  secret?: true;
}

const setting = <T extends z.ZodType>(schema: T, variable: SettingMeta['variable'], why: string): T =>
  schema.meta({ variable, why });
const secret = <T extends z.ZodType>(schema: T, variable: SettingMeta['variable'], why: string): T =>
  schema.meta({ variable, why, secret: true });

const whole = (least: number, most: number) =>
  z.coerce.number('a whole number').int('a whole number').min(least).max(most);
const duration_ms = (most = 24 * 3_600_000) => whole(1, most);
const days = whole(1, 36_500);
const proxy = z.url({
  protocol: /^(https?|socks5?)$/,
  error: 'an address that starts with http:// or https://',
});
/** In a variable: `a,b`. */
const list = (readable: (item: string) => boolean, expected: string) =>
  z
    .string()
    .transform((text) => text.split(',').map((item) => item.trim()))
    .refine((items) => items.every(readable), expected);

function isOrigin(text: string): boolean {
  return text === '*' || (/^https?:/.test(text) && URL.canParse(text) && new URL(text).origin === text);
}

export const controlSettings = z.strictObject({
  port: setting(
    whole(0, 65_535).default(7400),
    ['FLOTILLA_PORT', 'PORT'],
    'One port for API and node links; 0 takes a free one.',
  ),
  host: setting(
    z.string().min(1).default('127.0.0.1'),
    ['FLOTILLA_HOST'],
    'The address it listens on: only this machine, until its owner says otherwise; 0.0.0.0 is everywhere.',
  ),
  public_url: setting(
    z
      .url({ protocol: /^https?$/, error: 'an address that starts with http:// or https://' })
      .transform((url) => url.replace(/\/+$/, ''))
      .optional(),
    ['FLOTILLA_PUBLIC_URL'],
    'The address that other machines reach this one by; printed in join commands.',
  ),
  tls_cert: setting(
    z.string().min(1).optional(),
    ['FLOTILLA_TLS_CERT'],
    'A PEM file with the certificate and those that signed it: makes the port https and wss. Read again when it changes.',
  ),
  tls_key: setting(
    z.string().min(1).optional(),
    ['FLOTILLA_TLS_KEY'],
    'The PEM file with the key of that certificate.',
  ),
  trusted_proxies: setting(
    list(isNetwork, 'a list of addresses and networks, like 10.0.0.0/8,::1').default([]),
    ['FLOTILLA_TRUSTED_PROXIES'],
    'Proxies whose X-Forwarded-For is believed: addresses and networks, like `10.0.0.0/8,::1`. Nobody, until told.',
  ),
  cors_origins: setting(
    list(isOrigin, '* alone, or a list of origins like https://app.example (no path, no slash at the end)')
      .refine((origins) => origins.length === 1 || !origins.includes('*'), '* alone, or a list of origins')
      .default([]),
    ['FLOTILLA_CORS_ORIGINS'],
    'Web pages that may call this API from a browser: origins like `https://app.example,https://b.example`, or `*`.',
  ),
  data_dir: setting(
    z
      .string()
      .min(1)
      .default(() => join(homedir(), '.flotilla')),
    ['FLOTILLA_DATA_DIR'],
    'Where the embedded store and the keys made here lie.',
  ),
  database_url: secret(
    z
      .string()
      .regex(/^postgres(ql)?:\/\//, 'an address that starts with postgres:// or postgresql://')
      .optional(),
    ['DATABASE_URL'],
    'PostgreSQL 15 or newer; absent: the embedded store.',
  ),
  nats_url: secret(
    z
      .string()
      .refine(
        (text) =>
          text.split(',').every((one) => /^(nats|tls):\/\/./.test(one.trim()) && URL.canParse(one.trim())),
        'an address that starts with nats:// or tls://, or several with commas',
      )
      .optional(),
    ['NATS_URL'],
    'Where several replicas on one database meet, like `nats://user:password@nats.internal`; of a cluster all servers, with commas. Absent: one replica.',
  ),
  admin_key: secret(
    z
      .string()
      .min(32, 'at least 32 characters: it can do everything, and nothing slows down guesses at its hash')
      .max(256)
      .regex(/^[\x21-\x7e]+$/, 'made of printable ASCII without spaces: it travels in a header')
      .optional(),
    ['FLOTILLA_ADMIN_KEY'],
    'The first key of an installation, 32 characters or more, with the role admin; stored as a hash, once.',
  ),
  secret_key: secret(
    z
      .string()
      .min(32, 'at least 32 characters: whoever guesses it reads the keys of all providers')
      .max(1024)
      .optional(),
    ['FLOTILLA_SECRET_KEY'],
    'Seals what must be kept to be used, like the keys of providers, 32 characters or more; checked at start. ' +
      'Keep a copy: without it they are lost.',
  ),
  secret_key_previous: secret(
    z.string().min(32, 'at least 32 characters, as it was').max(1024).optional(),
    ['FLOTILLA_SECRET_KEY_PREVIOUS'],
    'The FLOTILLA_SECRET_KEY of before, for the one start at which a new one takes its place; then not needed any more.',
  ),
  https_proxy: secret(
    proxy.optional(),
    ['https_proxy', 'HTTPS_PROXY'],
    'The way to providers with an https address; it has to allow CONNECT. This machine itself is never asked through it.',
  ),
  http_proxy: secret(
    proxy.optional(),
    ['http_proxy', 'HTTP_PROXY'],
    'The way to providers with an http address; without HTTPS_PROXY to the others as well.',
  ),
  no_proxy: setting(
    z.string().optional(),
    ['no_proxy', 'NO_PROXY'],
    'Providers that are asked without a proxy: names, domains like `.internal`, or `*`, with commas.',
  ),
  heartbeat_ms: setting(
    whole(50, 600_000).default(5000),
    ['FLOTILLA_HEARTBEAT_MS'],
    'H: every time of liveness follows from it. 5 s finds a dead node within 15 s at 0.2 messages a second each.',
  ),
  connect_timeout_ms: setting(
    duration_ms().default(5000),
    ['FLOTILLA_CONNECT_TIMEOUT_MS'],
    'How long a connection to an upstream provider may take; a node reads the same variable for its backends.',
  ),
  first_byte_timeout_ms: setting(
    duration_ms().default(300_000),
    ['FLOTILLA_FIRST_BYTE_TIMEOUT_MS'],
    'How long a backend may take to the first byte of its answer: loading a large model from disk is no failure.',
  ),
  idle_timeout_ms: setting(
    duration_ms().default(120_000),
    ['FLOTILLA_IDLE_TIMEOUT_MS'],
    'How long a backend may be silent between two bytes of an answer under way.',
  ),
  client_stall_timeout_ms: setting(
    duration_ms().default(30_000),
    ['FLOTILLA_CLIENT_STALL_TIMEOUT_MS'],
    'A client that takes (or sends) nothing for this long has gone away; its slot is worth more.',
  ),
  queue_timeout_ms: setting(
    duration_ms().default(60_000),
    ['FLOTILLA_QUEUE_TIMEOUT_MS'],
    'How long a request waits for a slot before 504 queue_timeout.',
  ),
  run_timeout_ms: setting(
    duration_ms().default(600_000),
    ['FLOTILLA_RUN_TIMEOUT_MS'],
    'How long a request may run: as long as OpenAI clients wait by default.',
  ),
  drain_timeout_ms: setting(
    duration_ms().default(25_000),
    ['FLOTILLA_DRAIN_TIMEOUT_MS'],
    'How long a stop waits for answers under way; under the 30 s that supervisors grant.',
  ),
  discovery_timeout_ms: setting(
    whole(100, 600_000).default(30_000),
    ['FLOTILLA_DISCOVERY_TIMEOUT_MS'],
    'How long a node may take to tell its models when it is asked: a full disk of them takes Ollama some seconds.',
  ),
  queue_bound: setting(
    whole(0, 1_000_000).default(1000),
    ['FLOTILLA_QUEUE_BOUND'],
    'Requests that may wait for one model; more are refused at once with 429 queue_full.',
  ),
  body_limit_bytes: setting(
    whole(1024, 1024 * MIB).default(16 * MIB),
    ['FLOTILLA_BODY_LIMIT_BYTES'],
    'The largest request: room for images in a chat.',
  ),
  body_memory_bytes: setting(
    whole(1024, 64 * 1024 * MIB).default(256 * MIB),
    ['FLOTILLA_BODY_MEMORY_BYTES'],
    'All request bodies held at once, with the results of detached jobs under way; more are refused with 503 instead of ending the process, and detached jobs wait. At least 4 times the largest request.',
  ),
  result_limit_bytes: setting(
    whole(1024, 256 * MIB).default(16 * MIB),
    ['FLOTILLA_RESULT_LIMIT_BYTES'],
    'The largest answer that is kept as the result of a detached job; a larger one fails it.',
  ),
  detached_queue_timeout_ms: setting(
    duration_ms(30 * 24 * 3_600_000).default(24 * 3_600_000),
    ['FLOTILLA_DETACHED_QUEUE_TIMEOUT_MS'],
    'How long a detached job waits for a slot, unless it says otherwise.',
  ),
  detached_retention_ms: setting(
    duration_ms(365 * 24 * 3_600_000).default(24 * 3_600_000),
    ['FLOTILLA_DETACHED_RETENTION_MS'],
    'How long request and result of a detached job are kept after its end, unless it says otherwise.',
  ),
  connection_limit: setting(
    whole(1, 1_000_000).default(10_000),
    ['FLOTILLA_CONNECTION_LIMIT'],
    'Sockets of clients open at once. A node that is linked has one besides; keep both together below the limit of open files.',
  ),
  job_retention_days: setting(
    days.default(30),
    ['FLOTILLA_JOB_RETENTION_DAYS'],
    'How long finished jobs and the stories of their attempts are kept.',
  ),
  usage_retention_days: setting(
    days.default(400),
    ['FLOTILLA_USAGE_RETENTION_DAYS'],
    'How long usage rows are kept: a year, and a month to look back on it.',
  ),
  audit_retention_days: setting(
    days.default(400),
    ['FLOTILLA_AUDIT_RETENTION_DAYS'],
    'How long the rows of the audit are kept.',
  ),
  log_level: setting(
    z.enum(LOG_LEVELS).default('info'),
    ['FLOTILLA_LOG_LEVEL'],
    'What the log has; no level prints a body.',
  ),
  otlp_endpoint: setting(
    z.url({ protocol: /^https?$/, error: 'an address that starts with http:// or https://' }).optional(),
    ['OTEL_EXPORTER_OTLP_ENDPOINT'],
    'A collector that takes OTLP over HTTP, like http://127.0.0.1:4318: it gets a trace of each inference request.',
  ),
  trace_ratio: setting(
    z.coerce.number('a number from 0 to 1').min(0).max(1).default(1),
    ['OTEL_TRACES_SAMPLER_ARG'],
    'Of requests that bring no trace of their own, the part that gets one, from 0 to 1.',
  ),
  trace_providers: setting(
    z.enum(['on', 'off'], 'on or off').default('off'),
    ['FLOTILLA_TRACE_PROVIDERS'],
    'Whether providers get the `traceparent` of a request, as nodes do. Off: by it they could tell which requests belong ' +
      'together, and what they trace is seldom yours to read.',
  ),
  metrics_token: secret(
    z.string().min(16, 'at least 16 characters').max(256).optional(),
    ['FLOTILLA_METRICS_TOKEN'],
    'Lets a scraper on another machine read /metrics, as a bearer token; 16 characters or more.',
  ),
});

type ControlSettings = z.output<typeof controlSettings>;
export type SettingName = keyof ControlSettings;
export type ControlConfig = Readonly<ControlSettings> & {
  /** What is odd but does not keep it from starting; logged at start. */
  readonly warnings: readonly string[];
};

/** A setting that cannot be used. The message names its variable or flag and is meant for the person who set it. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
}

/** Variables that other parts of Flotilla, or later versions, read. */
const FOREIGN_VARIABLES = [
  'FLOTILLA_URL',
  'FLOTILLA_API_KEY',
  'FLOTILLA_NODE_STATE_DIR',
  'FLOTILLA_NODE_STATUS_PORT',
  'FLOTILLA_TEST_DATABASE_URL',
];
const TEST_HEARTBEAT_MS = 2000;

export type Environment = Readonly<Record<string, string | undefined>>;
/** Settings as a command's flags gave them, unread. */
export type ControlFlags = { readonly [Name in SettingName]?: unknown };

/**
 * Reads the settings of one control plane.
 * @throws ConfigError that names each variable or flag at fault
 */
export function readControlConfig(env: Environment, flags: ControlFlags = {}): ControlConfig {
  const given: Record<string, unknown> = {};
  const origins = new Map<string, string>();
  for (const name of settingNames) {
    const source = sourceOf(name, env, flags);
    if (source === undefined) continue;
    given[name] = source.value;
    origins.set(name, source.origin);
  }
  const parsed = controlSettings.safeParse(given);
  if (!parsed.success)
    throw new ConfigError(parsed.error.issues.map((issue) => complain(issue, given, origins)).join('\n'));
  refuseReplicasWithoutDatabase(parsed.data);
  refuseHalfTls(parsed.data);
  refusePreviousAlone(parsed.data);
  refuseScarceMemory(parsed.data);
  return Object.freeze({ ...parsed.data, warnings: Object.freeze(warningsOf(env, parsed.data)) });
}

const settingNames = Object.keys(controlSettings.shape) as SettingName[];

export function settingMeta(name: SettingName): SettingMeta {
  return controlSettings.shape[name].meta() as unknown as SettingMeta;
}

function sourceOf(name: SettingName, env: Environment, flags: ControlFlags) {
  if (flags[name] !== undefined) return { value: flags[name], origin: `--${name.replaceAll('_', '-')}` };
  for (const variable of settingMeta(name).variable) {
    // Compose files and unit files write `NAME=` for "not set".
    const value = env[variable]?.trim();
    if (value !== undefined && value !== '') return { value, origin: variable };
  }
  return undefined;
}

function complain(
  issue: z.core.$ZodIssue,
  given: Record<string, unknown>,
  origins: Map<string, string>,
): string {
  const name = String(issue.path[0]) as SettingName;
  const origin = origins.get(name) ?? name;
  const value = settingMeta(name).secret === true ? 'not usable' : JSON.stringify(given[name]);
  return `${origin} is ${value}; it must be ${expectation(issue)}.`;
}

function expectation(issue: z.core.$ZodIssue): string {
  switch (issue.code) {
    case 'too_small':
      return issue.origin === 'string' ? issue.message : `at least ${issue.minimum}`;
    case 'too_big':
      return issue.origin === 'string' ? `at most ${issue.maximum} characters` : `at most ${issue.maximum}`;
    case 'invalid_value':
      return `one of ${issue.values.map(String).join(', ')}`;
    default:
      return issue.message;
  }
}

function refuseReplicasWithoutDatabase(settings: ControlSettings): void {
  if (settings.nats_url === undefined || settings.database_url !== undefined) return;
  throw new ConfigError(
    'NATS_URL is set, and DATABASE_URL is not: several replicas need one PostgreSQL. Set DATABASE_URL, or remove NATS_URL.',
  );
}

function refuseHalfTls({ tls_cert, tls_key, public_url }: ControlSettings): void {
  if ((tls_cert === undefined) !== (tls_key === undefined)) {
    const [given, missing] =
      tls_cert === undefined
        ? ['FLOTILLA_TLS_KEY', 'FLOTILLA_TLS_CERT']
        : ['FLOTILLA_TLS_CERT', 'FLOTILLA_TLS_KEY'];
    throw new ConfigError(`${given} is set, but ${missing} is not: TLS needs the certificate and its key.`);
  }
  if (tls_cert !== undefined && public_url?.startsWith('http:') === true) {
    throw new ConfigError(
      `FLOTILLA_PUBLIC_URL is ${public_url}, but with FLOTILLA_TLS_CERT the port speaks https.`,
    );
  }
}

function refusePreviousAlone({ secret_key, secret_key_previous }: ControlSettings): void {
  if (secret_key_previous === undefined || secret_key !== undefined) return;
  throw new ConfigError(
    'FLOTILLA_SECRET_KEY_PREVIOUS is set, but FLOTILLA_SECRET_KEY, which is to take its place, is not.',
  );
}

/** With less, attached bodies would leave no room for a claim, and detached jobs would wait for as long as they come. */
const BODIES_LEAST = 4;

function refuseScarceMemory({ body_limit_bytes, body_memory_bytes }: ControlSettings): void {
  const least = BODIES_LEAST * body_limit_bytes;
  if (body_memory_bytes >= least) return;
  throw new ConfigError(
    `FLOTILLA_BODY_MEMORY_BYTES is ${body_memory_bytes}; it must be at least ${least}, ${BODIES_LEAST} times ` +
      'FLOTILLA_BODY_LIMIT_BYTES, so that detached jobs find room beside other requests. Raise it, or lower the limit.',
  );
}

function warningsOf(env: Environment, settings: ControlSettings): string[] {
  const warnings: string[] = [];
  if (settings.heartbeat_ms < TEST_HEARTBEAT_MS) {
    warnings.push(
      `FLOTILLA_HEARTBEAT_MS is ${settings.heartbeat_ms}: under ${TEST_HEARTBEAT_MS} is for tests, because a short ` +
        'pause of a machine or its network then counts as the loss of a node.',
    );
  }
  const known = new Set([
    ...settingNames.flatMap((name) => settingMeta(name).variable),
    ...FOREIGN_VARIABLES,
  ]);
  for (const variable of Object.keys(env)) {
    if (!variable.startsWith('FLOTILLA_') || known.has(variable) || env[variable] === '') continue;
    warnings.push(unknownVariable(variable, known));
  }
  return warnings;
}

function unknownVariable(variable: string, known: Iterable<string>): string {
  const meant = nearest(variable, known);
  return `${variable} is no setting of Flotilla and has no effect${meant === undefined ? '.' : `: did you mean ${meant}?`}`;
}
