/** What happened in a run, a line each: kept only where somebody wants to read it. */
export class History {
  readonly lines: string[] = [];
  readonly kept: boolean;
  readonly #now_ms: () => number;

  constructor(now_ms: () => number, kept: boolean) {
    this.#now_ms = now_ms;
    this.kept = kept;
  }

  /** @param fields told as JSON; errors by their message */
  add(who: string, what: string, fields?: unknown): void {
    if (!this.kept) return;
    const told = fields === undefined ? '' : ` ${JSON.stringify(fields, plain)}`;
    this.lines.push(`${this.#now_ms().toFixed(3).padStart(11)} ${who.padEnd(10)} ${what}${told}`);
  }
}

/** Where an error was thrown is the machine's, not the run's. */
function plain(_key: string, value: unknown): unknown {
  if (value instanceof Error) return `${value.name}: ${value.message}`;
  if (value instanceof Uint8Array) return `${value.byteLength} bytes`;
  return value;
}
