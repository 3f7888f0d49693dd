import type { Log, LogFields } from '@flotilla/core';

export interface LogLine {
  level: keyof Log;
  fields: LogFields;
  message: string;
}

/** A log that only remembers. */
export function memoryLog(): Log & { lines: LogLine[] } {
  const lines: LogLine[] = [];
  const write = (level: keyof Log) => (fields: LogFields, message: string) =>
    void lines.push({ level, fields, message });
  return { lines, debug: write('debug'), info: write('info'), warn: write('warn'), error: write('error') };
}
