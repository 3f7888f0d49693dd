import type { Log } from '@flotilla/core';
import pino from 'pino';

export const LOG_LEVELS = ['debug', 'info', 'warn', 'error', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** No call passes a secret; this is the net below it. */
const SECRET_FIELDS = ['credential', 'token', 'api_key', 'authorization', 'headers'];

export interface LogOutput {
  write(line: string): void;
  isTTY?: boolean;
}

/** The daemon's log: JSON lines on stderr, or a short line for a person who looks at a terminal. */
export function openLog(level: LogLevel, output: LogOutput = process.stderr): Log {
  const options: pino.LoggerOptions = {
    level,
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label) => ({ level: label }) },
    redact: { paths: [...SECRET_FIELDS, ...SECRET_FIELDS.map((field) => `*.${field}`)], censor: '[hidden]' },
  };
  if (output.isTTY !== true) return pino(options, output);
  return pino(options, { write: (line: string) => output.write(humanLine(line)) });
}

function humanLine(line: string): string {
  const { level, time, msg, ...fields } = JSON.parse(line) as Record<string, unknown>;
  const clock = typeof time === 'string' ? time.slice(11, 19) : '';
  const mark = level === 'info' ? '' : `${String(level)}: `;
  const details = Object.entries(fields).map(([name, value]) => `${name}=${short(value)}`);
  const tail = details.length === 0 ? '' : `  (${details.join(' ')})`;
  return `${clock} ${mark}${String(msg)}${tail}\n`;
}

function short(value: unknown): string {
  const text = typeof value === 'string' ? value : (JSON.stringify(value) ?? '');
  return text.length > 200 ? `${text.slice(0, 200)}…` : text;
}
