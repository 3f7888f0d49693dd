/**
 * JSON whose integers stay what they are. A double holds integers up to 2^53; a 64-bit seed or id in an answer would
 * come out rounded. So a number that a double cannot hold becomes what `JSON.rawJSON` makes of its digits: an object
 * that `JSON.stringify` prints as it came, and whose `rawJSON` is the text. Where the runtime is too old for it, such a
 * number is rounded as everywhere else.
 */
const { rawJSON } = JSON as unknown as { rawJSON?: (text: string) => unknown };

/** Reading with a reviver is several times slower, so only what may need it is read so; a fraction's digits do not. */
const MAY_HOLD_LARGE = /(?<![\d.])\d{16}|\d[eE]\+?\d{3}/;

export function parseJson(text: string): unknown {
  if (rawJSON === undefined || !MAY_HOLD_LARGE.test(text)) return JSON.parse(text);
  const read = (_key: string, value: unknown, context?: { source?: string }) =>
    typeof value === 'number' && context?.source !== undefined && !fits(value, context.source)
      ? rawJSON(context.source)
      : value;
  return JSON.parse(text, read as (key: string, value: unknown) => unknown);
}

/** Large integers may be given as bigints, too. */
export function printJson(value: unknown): string {
  if (rawJSON === undefined) return JSON.stringify(value);
  return JSON.stringify(value, (_key, part: unknown) =>
    typeof part === 'bigint' ? rawJSON(String(part)) : part,
  );
}

function fits(value: number, digits: string): boolean {
  return Number.isFinite(value) && (Number.isSafeInteger(value) || !/^-?\d+$/.test(digits));
}
