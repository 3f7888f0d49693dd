export type LogFields = Record<string, unknown>;

/** Structured log: fields first, one sentence after. Bodies and credentials never go in, at any level. */
export interface Log {
  debug(fields: LogFields, message: string): void;
  info(fields: LogFields, message: string): void;
  warn(fields: LogFields, message: string): void;
  error(fields: LogFields, message: string): void;
}
