import { asBuffer, closingQuote } from './json-string.ts';

/**
 * Finds and replaces top-level members of a JSON object in its bytes. The bytes must be a JSON object already (the
 * caller has parsed them); everything outside the spliced range stays as it came: 64-bit integers, spelling of
 * numbers, whitespace, escapes, duplicates of other names.
 */
export interface ByteRange {
  start: number;
  end: number;
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const COLON = 0x3a;
const COMMA = 0x2c;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;
const OPEN_BRACKET = 0x5b;
const CLOSE_BRACKET = 0x5d;
const SPACE = 0x20;

/** The value of the member, as `JSON.parse` would choose it: the last one of that name. */
export function topLevelMember(bytes: Uint8Array, name: string): ByteRange | undefined {
  return topLevelMembers(bytes, name).at(-1);
}

/** The values of all members of that name, in order. */
export function topLevelMembers(bytes: Uint8Array, name: string): ByteRange[] {
  const json = asBuffer(bytes);
  const plain = Buffer.from(JSON.stringify(name)).subarray(1, -1);
  const found: ByteRange[] = [];
  let at = skipSpace(json, expect(json, skipSpace(json, afterMark(json)), OPEN_BRACE) + 1);
  while (json[at] === QUOTE) {
    const key_end = skipString(json, at);
    const matches = isName(json, at, key_end, plain, name);
    const start = skipSpace(json, expect(json, skipSpace(json, key_end), COLON) + 1);
    const end = skipValue(json, start);
    if (matches) found.push({ start, end });
    at = skipSpace(json, end);
    if (json[at] !== COMMA) break;
    at = skipSpace(json, at + 1);
  }
  return found;
}

/** The elements of a JSON array, in order; the bytes must be one already. */
export function arrayElements(bytes: Uint8Array): ByteRange[] {
  const json = asBuffer(bytes);
  const found: ByteRange[] = [];
  let at = skipSpace(json, expect(json, skipSpace(json, 0), OPEN_BRACKET) + 1);
  while (at < json.length && json[at] !== CLOSE_BRACKET) {
    const end = skipValue(json, at);
    found.push({ start: at, end });
    at = skipSpace(json, end);
    if (json[at] !== COMMA) break;
    at = skipSpace(json, at + 1);
  }
  return found;
}

/** Puts `value` in the place of every member of that name; without one, returns the same bytes. */
export function replaceMember(bytes: Uint8Array, name: string, value: Uint8Array): Uint8Array {
  const ranges = topLevelMembers(bytes, name);
  if (ranges.length === 0) return bytes;
  const parts: Uint8Array[] = [];
  let from = 0;
  for (const { start, end } of ranges) {
    parts.push(bytes.subarray(from, start), value);
    from = end;
  }
  parts.push(bytes.subarray(from));
  return Buffer.concat(parts);
}

/** Adds a member after all others, where it also wins over an older one of its name. */
export function addMember(bytes: Uint8Array, name: string, value: Uint8Array): Uint8Array {
  const json = asBuffer(bytes);
  const close = expect(json, json.lastIndexOf(CLOSE_BRACE), CLOSE_BRACE);
  let last = close - 1;
  while (last > 0 && json[last]! <= SPACE) last--;
  // Only the object's own brace can stand before its closing one: a nested value would end with its own.
  const comma = json[last] === OPEN_BRACE ? '' : ',';
  const member = Buffer.from(`${comma}${JSON.stringify(name)}:`);
  return Buffer.concat([bytes.subarray(0, last + 1), member, value, bytes.subarray(last + 1)]);
}

/** Whether the key in `json[start, end)`, quotes included, spells `name`; escapes are resolved only where there are any. */
function isName(json: Buffer, start: number, end: number, plain: Buffer, name: string): boolean {
  const length = end - start - 2;
  if (length === plain.length && json.compare(plain, 0, plain.length, start + 1, end - 1) === 0) return true;
  // An escape makes a key longer than its name; a key of no more bytes than characters can only match as it stands.
  if (length <= name.length || json.subarray(start, end).indexOf(BACKSLASH) === -1) return false;
  return JSON.parse(json.toString('utf8', start, end)) === name;
}

/** A byte order mark may stand before everything else; decoding passes over it, too. */
function afterMark(json: Buffer): number {
  return json[0] === 0xef && json[1] === 0xbb && json[2] === 0xbf ? 3 : 0;
}

function skipSpace(json: Buffer, from: number): number {
  let at = from;
  while (at < json.length && json[at]! <= SPACE) at++;
  return at;
}

function expect(json: Buffer, at: number, byte: number): number {
  if (json[at] !== byte) throw new TypeError('The bytes to splice are no JSON object.');
  return at;
}

/** @returns the index after the string that begins at `from` */
function skipString(json: Buffer, from: number): number {
  const close = closingQuote(json, from + 1, json.length);
  if (close === -1) throw new TypeError('The bytes to splice are no JSON object.');
  return close + 1;
}

/** @returns the index after the value that begins at `from` */
function skipValue(json: Buffer, from: number): number {
  const first = json[from];
  if (first === QUOTE) return skipString(json, from);
  if (first !== OPEN_BRACE && first !== OPEN_BRACKET) {
    let at = from;
    while (at < json.length && !endsScalar(json[at]!)) at++;
    return at;
  }
  let depth = 0;
  let at = from;
  while (at < json.length) {
    const byte = json[at]!;
    if (byte === QUOTE) {
      at = skipString(json, at);
      continue;
    }
    at++;
    if (byte === OPEN_BRACE || byte === OPEN_BRACKET) depth++;
    else if ((byte === CLOSE_BRACE || byte === CLOSE_BRACKET) && --depth === 0) return at;
  }
  throw new TypeError('The bytes to splice are no JSON object.');
}

function endsScalar(byte: number): boolean {
  return byte === COMMA || byte === CLOSE_BRACE || byte === CLOSE_BRACKET || byte <= SPACE;
}
