import type { TokenUsage } from '@flotilla/protocol';
import { readUsage } from '../token-usage.ts';

/** A non-streaming answer's usage stands near its end, or the answer is small. */
const KEPT_MAX_BYTES = 1024 * 1024;
const NAME = Buffer.from('"usage"');

/** Reads the usage of a JSON answer as it passes by, from its last mebibyte, without parsing the rest. */
export class BodyUsage {
  #pieces: Uint8Array[] = [];
  #kept = 0;

  push(chunk: Uint8Array): void {
    this.#pieces.push(chunk);
    this.#kept += chunk.byteLength;
    let first = this.#pieces[0]!;
    while (this.#kept - first.byteLength >= KEPT_MAX_BYTES) {
      this.#pieces.shift();
      this.#kept -= first.byteLength;
      first = this.#pieces[0]!;
    }
  }

  usage(): TokenUsage | undefined {
    const only = this.#pieces.length === 1 ? this.#pieces[0]! : Buffer.concat(this.#pieces, this.#kept);
    const tail = Buffer.from(only.buffer, only.byteOffset, only.byteLength);
    this.#pieces = [];
    for (let at = tail.lastIndexOf(NAME); at > 0; at = tail.lastIndexOf(NAME, at - 1)) {
      const usage = usageAfter(tail, at + NAME.length);
      if (usage !== undefined) return usage;
    }
    return undefined;
  }
}

const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;
const COLON = 0x3a;
/** A usage object is smaller than this by far. */
const USAGE_MAX_BYTES = 4096;

/** A usage object nests one level (`prompt_tokens_details`) and holds no strings: its braces are only its own. */
function usageAfter(json: Buffer, from: number): TokenUsage | undefined {
  const limit = Math.min(json.length, from + USAGE_MAX_BYTES);
  const start = json.indexOf(OPEN_BRACE, from);
  if (start === -1 || start >= limit || !isColon(json, from, start)) return undefined;
  let depth = 0;
  for (let at = start; at < limit; at++) {
    if (json[at] === OPEN_BRACE) depth++;
    if (json[at] !== CLOSE_BRACE || --depth > 0) continue;
    try {
      return readUsage(JSON.parse(json.toString('latin1', start, at + 1)));
    } catch {
      return undefined;
    }
  }
  return undefined;
}

/** Whether there is one colon between the name and its value, and blanks. */
function isColon(json: Buffer, from: number, to: number): boolean {
  let colons = 0;
  for (let at = from; at < to; at++) {
    if (json[at] === COLON) colons++;
    else if (json[at]! > 0x20) return false;
  }
  return colons === 1;
}
