import type { Log, LogFields } from '@flotilla/core';

/** A log that a test can read. */
export function recordedLog(): Log & { lines: { level: string; message: string; fields: LogFields }[] } {
  const lines: { level: string; message: string; fields: LogFields }[] = [];
  const write = (level: string) => (fields: LogFields, message: string) =>
    void lines.push({ level, message, fields });
  return { lines, debug: write('debug'), info: write('info'), warn: write('warn'), error: write('error') };
}
