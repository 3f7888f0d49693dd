import { homedir } from 'node:os';
import { join } from 'node:path';
import { z } from 'zod';
import { nearest } from './nearest.ts';
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

export const controlSettings = z.strictObject({
  port: setting(
    whole(0, 65_535).default(7400),
    ['FLOTILLA_PORT', 'PORT'],
    'One port for API, node links and dashboard; 0 takes a free one.',
  ),
  host: setting(
    z.string().min(1).default('127.0.0.1'),
    ['FLOTILLA_HOST'],
    'Only this machine, until its owner says otherwise.',
  ),
  public_url: setting(
    z
      .url({ protocol: /^https?$/, error: 'an address that starts with http:// or https://' })
      .transform((url) => url.replace(/\/+$/, ''))
      .optional(),
    ['FLOTILLA_PUBLIC_URL'],
    'The address that other machines reach this one by; printed in join commands.',
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
    z.string().optional(),
    ['NATS_URL'],
    'What several replicas say to each other; refused by this version, which runs one.',
  ),
  admin_key: secret(
    z
      .string()
      .min(32, 'at least 32 characters: it can do everything, and nothing slows down guesses at its hash')
      .max(256)
      .regex(/^[\x21-\x7e]+$/, 'made of printable ASCII without spaces: it travels in a header')
      .optional(),
    ['FLOTILLA_ADMIN_KEY'],
    'The first key of an installation; stored as a hash, once.',
  ),
  heartbeat_ms: setting(
    whole(50, 600_000).default(5000),
    ['FLOTILLA_HEARTBEAT_MS'],
    'H: every time of liveness follows from it. 5 s finds a dead node within 15 s at 0.2 messages a second each.',
  ),
  connect_timeout_ms: setting(
    duration_ms().default(5000),
    ['FLOTILLA_CONNECT_TIMEOUT_MS'],
    'A backend that takes longer to accept a connection is not there.',
  ),
  first_byte_timeout_ms: setting(
    duration_ms().default(300_000),
    ['FLOTILLA_FIRST_BYTE_TIMEOUT_MS'],
    'Long enough to load a large model from disk, which is no failure.',
  ),
  idle_timeout_ms: setting(
    duration_ms().default(120_000),
    ['FLOTILLA_IDLE_TIMEOUT_MS'],
    'Between two bytes of an answer under way.',
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
    'All request bodies held at once; more are refused with 503 instead of ending the process.',
  ),
  connection_limit: setting(
    whole(1, 1_000_000).default(10_000),
    ['FLOTILLA_CONNECTION_LIMIT'],
    'Sockets open at once, nodes and clients together; keep it below the limit of open files.',
  ),
  job_retention_days: setting(
    days.default(30),
    ['FLOTILLA_JOB_RETENTION_DAYS'],
    'Finished jobs and the stories of their attempts.',
  ),
  usage_retention_days: setting(
    days.default(400),
    ['FLOTILLA_USAGE_RETENTION_DAYS'],
    'Usage rows: a year, and a month to look back on it.',
  ),
  log_level: setting(z.enum(LOG_LEVELS).default('info'), ['FLOTILLA_LOG_LEVEL'], 'No level prints a body.'),
  metrics_token: secret(
    z.string().min(16, 'at least 16 characters').max(256).optional(),
    ['FLOTILLA_METRICS_TOKEN'],
    'Lets a scraper on another machine read /metrics.',
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
  'FLOTILLA_SECRET_KEY',
  'FLOTILLA_TEST_DATABASE_URL',
];
/** To ignore these in silence would leave a person believing in what is not there. */
const UNSUPPORTED_VARIABLES: Record<string, string> = {
  FLOTILLA_TLS_CERT: 'this version does not terminate TLS: put a reverse proxy in front of it',
  FLOTILLA_TLS_KEY: 'this version does not terminate TLS: put a reverse proxy in front of it',
  FLOTILLA_TRUSTED_PROXIES: 'this version reads no forwarded addresses',
  FLOTILLA_CORS_ORIGINS: 'this version answers no cross-origin requests',
};
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
  refuseSecondReplica(parsed.data);
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

function refuseSecondReplica(settings: ControlSettings): void {
  if (settings.nats_url === undefined) return;
  throw new ConfigError(
    'NATS_URL is set, but this version of Flotilla runs one replica and would not use it: two of them would each ' +
      'hold half of the nodes and know nothing of each other. Remove NATS_URL and start one.',
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
    const reason = UNSUPPORTED_VARIABLES[variable];
    if (reason !== undefined) warnings.push(`${variable} has no effect: ${reason}.`);
    else warnings.push(unknownVariable(variable, known));
  }
  return warnings;
}

function unknownVariable(variable: string, known: Iterable<string>): string {
  const meant = nearest(variable, known);
  return `${variable} is no setting of Flotilla and has no effect${meant === undefined ? '.' : `: did you mean ${meant}?`}`;
}
