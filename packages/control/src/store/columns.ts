import { encode, sound } from './json.ts';

/** What a statement reads of a batch, by name, with the types of the store. */
export type Columns = Readonly<Record<string, 'text' | 'bigint' | 'boolean' | 'jsonb'>>;

/**
 * A batch as parameters: an array a column, in PostgreSQL's own text. It reads them in a fraction of the time that JSON
 * takes, where every row has the name of every field, and each is looked up.
 */
export function columnsOf<C extends Columns>(
  columns: C,
  rows: readonly { readonly [name in keyof C]?: unknown }[],
): string[] {
  return Object.entries(columns).map(([name, type]) =>
    arrayOf(rows.map((row) => (type === 'jsonb' ? encode(row[name]) : row[name]))),
  );
}

export function listed(columns: Columns): string {
  return Object.keys(columns).join(', ');
}

export function widthOf(columns: Columns): number {
  return Object.keys(columns).length;
}

/** The rows again. @param first the number of the first parameter */
export function unnested(columns: Columns, first = 1): string {
  const read = Object.entries(columns).map(
    ([name, type], place) => `unnest($${first + place}::${type}[]) as ${name}`,
  );
  return `select ${read.join(', ')}`;
}

/** JSON's text of a flat array is PostgreSQL's but for the brackets, and for escapes that are no `\"` or `\\`. */
function arrayOf(values: unknown[]): string {
  const text = JSON.stringify(values);
  const foreign = text.includes('\\') && FOREIGN_ESCAPE.test(text);
  return `{${foreign ? values.map(element).join(',') : text.slice(1, -1)}}`;
}

const FOREIGN_ESCAPE = /(?<!\\)(?:\\\\)*\\[^"\\]/;

function element(value: unknown): string {
  return typeof value === 'string'
    ? `"${sound(value).replaceAll(/["\\]/g, String.raw`\$&`)}"`
    : JSON.stringify(value ?? null);
}
