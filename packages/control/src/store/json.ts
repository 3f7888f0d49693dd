/**
 * A list as one JSON parameter. PostgreSQL's jsonb refuses NUL and lone surrogates, which a client can put in a
 * request id or a backend in an error message: they become U+FFFD, so that no byte from outside can fail a record.
 */
export function encode(value: unknown): string {
  const text = JSON.stringify(value);
  return REFUSED.test(text) ? JSON.stringify(value, clean) : text;
}

/** May match an escaped backslash before `u0000` too; then cleaning changes nothing. */
const REFUSED = /\\u0000|\\ud[89a-f]/;

function clean(_key: string, value: unknown): unknown {
  return typeof value === 'string' ? sound(value) : value;
}

/** Text that a text column or jsonb accepts. */
export function sound(text: string): string {
  return text.replaceAll('\0', '\uFFFD').toWellFormed();
}
