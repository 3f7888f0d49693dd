/**
 * The one way to the database. Both engines speak the same dialect and return the same types: `int8` is a JavaScript
 * number (an unsafe one is an error, never a rounded count), `jsonb` is parsed, everything else is text, boolean or
 * number.
 */
export interface Sql {
  /** A bare string is parsed and planned each time: for administration and for texts that are put together. */
  query<Row = Record<string, unknown>>(
    statement: Statement | string,
    params?: readonly Param[],
  ): Promise<Row[]>;
  /**
   * Committed when `run` resolves, rolled back when it rejects. `run` uses only the `Sql` that it is given.
   * @param statement_timeout_ms how long each of its statements may take, where that is not the engine's own limit
   */
  transaction<T>(run: (sql: Sql) => Promise<T>, statement_timeout_ms?: number): Promise<T>;
}

/** A hot statement: parsed once per connection and kept under its name. */
export interface Statement {
  readonly name: string;
  readonly text: string;
}

/** Records travel as their columns (`columns.ts`), lists as JSON text (`json.ts`). */
export type Param = string | number | boolean | null;

export interface Engine extends Sql {
  readonly kind: 'embedded' | 'postgres';
  readonly durability: 'process death' | 'power loss';
  /**
   * Replicas that sessions are named after which are open now; of one that is killed none is within milliseconds. Null where
   * not even the own sessions bear their name.
   */
  openSessions(): Promise<ReadonlySet<string> | null>;
  /** The store as it is at one moment, to be read for as long as that takes while everything else goes on. */
  snapshot(): Promise<Snapshot>;
  close(): Promise<void>;
}

export interface Snapshot {
  /** One connection inside a transaction that only reads. */
  readonly sql: Pick<Sql, 'query'>;
  close(): Promise<void>;
}

/** The store's own clock. It stamps rows and judges the deadlines that it has stamped; no machine's clock meets it. */
export const NOW_MS = '(extract(epoch from clock_timestamp()) * 1000)::bigint';

export const BEGIN_SNAPSHOT = 'begin isolation level repeatable read read only';

export function prepared(name: string, text: string): Statement {
  return { name, text };
}

/** For what may read all of a table, which other statements must not do, however old their plan is (`postgres.ts`). */
export function wholeTable<T>(sql: Sql, read: (tx: Sql) => Promise<T>): Promise<T> {
  return sql.transaction(async (tx) => {
    await tx.query("select set_config('enable_seqscan', 'on', true)");
    return read(tx);
  });
}

const INT8 = 20;
const NUMBERS = new Set([21, 23, 700, 701, INT8]);
const BOOL = 16;
const JSON_TYPES = new Set([114, 3802]);

/** Reads one column of the wire's text format; given to both drivers so that they cannot differ. */
export function decode(oid: number, text: string): unknown {
  if (oid === BOOL) return text === 't';
  if (JSON_TYPES.has(oid)) return JSON.parse(text);
  if (!NUMBERS.has(oid)) return text;
  const value = Number(text);
  if (oid === INT8 && !Number.isSafeInteger(value)) {
    const message = `The store returned ${text}, which is beyond the integers that JavaScript can hold.`;
    throw Object.assign(new RangeError(message), { code: '22003' }); // numeric_value_out_of_range
  }
  return value;
}
