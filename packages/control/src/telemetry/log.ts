import type { Log } from '@flotilla/core';
import pino from 'pino';

export const LOG_LEVELS = ['debug', 'info', 'warn', 'error', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** No call passes a secret or a body; this is the net below it. */
const HIDDEN_FIELDS = [
  'authorization',
  '["x-api-key"]',
  'cookie',
  'headers',
  'credential',
  'token',
  'api_key',
  'admin_key',
  'secret_key',
  'secret_key_previous',
  'database_url',
  'https_proxy',
  'http_proxy',
  'body',
];

export interface LogOutput {
  write(line: string): void;
}

/** The control plane's log: one JSON object a line, on stderr, so that stdout stays for what a command answers. */
export function openLog(level: LogLevel, output: LogOutput = pino.destination({ dest: 2, sync: true })): Log {
  return pino(
    {
      level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      serializers: { error: describeError, err: describeError },
      redact: { paths: [...HIDDEN_FIELDS, ...HIDDEN_FIELDS.map(beneath)], censor: '[hidden]' },
    },
    output,
  );
}

function beneath(field: string): string {
  return field.startsWith('[') ? `*${field}` : `*.${field}`;
}

/**
 * Of an error: its message, code, stack and causes. Never its other members, because drivers hang statements with
 * their parameters on them.
 */
function describeError(error: unknown): unknown {
  if (!(error instanceof Error)) return String(error);
  const { code } = error as { code?: unknown };
  return {
    type: error.name,
    message: error.message,
    ...(typeof code === 'string' && { code }),
    stack: error.stack,
    ...(error.cause !== undefined && { cause: describeError(error.cause) }),
  };
}
