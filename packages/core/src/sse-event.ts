import type { TokenUsage } from '@flotilla/protocol';
import { closingQuote } from './json-string.ts';
import { readUsage } from './token-usage.ts';

/**
 * What one whole SSE event of a backend says. One walk from string to string finds the members that matter; long
 * strings are passed by a native search, and only an event with usage or an error is decoded and parsed. (Measured on
 * events of 226 bytes: 1.2 µs each with everything around it, against 3.7 µs with a native search per name.)
 */
export interface EventFacts {
  usage: TokenUsage | undefined;
  /** Usage and `choices: []`: the event that `include_usage` adds. */
  usage_only: boolean;
  finished: boolean;
  /** The backend's own words about an in-band error. */
  error: string | undefined;
  /** Bytes of text, reasoning and tool arguments, as they are spelled in JSON. */
  content_bytes: number;
}

const ONE_DATA_LINE = /^data:[^\r\n]*[\r\n]*$/;
const QUOTE = 0x22;
const COLON = 0x3a;
const LETTER_E = 0x65;
const LETTER_N = 0x6e;
const BRACE = 0x7b;

const USAGE = Buffer.from('usage');
const ERROR = Buffer.from('error');
const FINISH = Buffer.from('finish_reason');
const TEXTS = ['text', 'content', 'reasoning', 'arguments', 'reasoning_content'].map((name) =>
  Buffer.from(name),
);
/** The names that matter, by their length. */
const NAMES: Buffer[][] = [];
for (const name of [USAGE, ERROR, FINISH, ...TEXTS]) (NAMES[name.length] ??= []).push(name);

/** Reads the event in `bytes[start, end)`. */
export function readEvent(bytes: Buffer, start: number, end: number): EventFacts {
  const facts: EventFacts = {
    usage: undefined,
    usage_only: false,
    finished: false,
    error: undefined,
    content_bytes: 0,
  };
  let parse = false;
  let at = start;
  while (at < end) {
    if (bytes[at] !== QUOTE) {
      at++;
      continue;
    }
    const open = at;
    const close = closingQuote(bytes, open + 1, end);
    if (close === -1) break;
    at = close + 1;
    const name = nameAt(bytes, open + 1, close);
    if (name === undefined) continue;
    const colon = skipSpace(bytes, at, end);
    if (bytes[colon] !== COLON) {
      // `"object": "error"`, as vLLM used to say it
      if (name === ERROR) parse = true;
      continue;
    }
    at = skipSpace(bytes, colon + 1, end);
    const first = bytes[at];
    if (name === USAGE) parse ||= first === BRACE;
    else if (name === ERROR) parse ||= first !== LETTER_N;
    else if (first === QUOTE) {
      const last = closingQuote(bytes, at + 1, end);
      if (last === -1) break;
      if (name === FINISH) facts.finished = true;
      else facts.content_bytes += last - at - 1;
      at = last + 1;
    }
  }
  const named = bytes[start] === LETTER_E && /^(?:event: ?error|error:)/.test(ascii(bytes, start, end, 16));
  if (parse || named) interpret(bytes.toString('utf8', start, end), named, facts);
  return facts;
}

/** Whether the data of the event in `bytes[start, end)` is JSON; an event without data has nothing to be wrong. */
export function isSound(bytes: Buffer, start: number, end: number): boolean {
  // What JSON is does not depend on bytes above 0x7f, and to read them as Latin-1 is the cheapest.
  const text = bytes.toString('latin1', start, end);
  const data = ONE_DATA_LINE.test(text) ? text.slice(5) : dataOf(text, 'data:');
  if (data.trim() === '') return true;
  try {
    JSON.parse(data);
    return true;
  } catch {
    return false;
  }
}

function nameAt(bytes: Buffer, start: number, end: number): Buffer | undefined {
  const candidates = NAMES[end - start];
  if (candidates === undefined) return undefined;
  for (const name of candidates) {
    let index = 0;
    while (index < name.length && bytes[start + index] === name[index]) index++;
    if (index === name.length) return name;
  }
  return undefined;
}

function ascii(bytes: Buffer, start: number, end: number, most: number): string {
  return bytes.toString('latin1', start, Math.min(end, start + most));
}

function skipSpace(bytes: Buffer, from: number, end: number): number {
  let at = from;
  while (at < end && (bytes[at] === 0x20 || bytes[at] === 0x09)) at++;
  return at;
}

/** What the lines of these fields say, as a client would join them. */
function dataOf(text: string, ...fields: string[]): string {
  return text
    .replace(/^\uFEFF/, '')
    .split(/\r\n|\n|\r/)
    .filter((line) => fields.some((field) => line.startsWith(field)))
    .map((line) => line.slice(line.indexOf(':') + 1).replace(/^ /, ''))
    .join('\n');
}

function interpret(text: string, named: boolean, facts: EventFacts): void {
  const data = dataOf(text, 'data:', 'error:');
  let value: unknown;
  try {
    value = JSON.parse(data);
  } catch {
    value = undefined;
  }
  const body = typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  facts.usage = readUsage(body['usage']);
  facts.usage_only =
    facts.usage !== undefined && Array.isArray(body['choices']) && body['choices'].length === 0;
  const error = body['error'];
  if (named || body['object'] === 'error' || isFault(error)) facts.error = faultText(error ?? body);
}

function isFault(error: unknown): boolean {
  return (typeof error === 'object' && error !== null) || (typeof error === 'string' && error !== '');
}

function faultText(error: unknown): string {
  if (typeof error === 'string') return error.slice(0, 1000);
  const message = (error as { message?: unknown } | null)?.message;
  return typeof message === 'string'
    ? message.slice(0, 1000)
    : 'The backend reported an error in its stream.';
}
