const QUOTE = 0x22;
const BACKSLASH = 0x5c;
/** A string is looked at byte by byte this far before a native search takes over: most are short. */
const NEAR = 48;

/** The index of the quote that ends the JSON string whose text begins at `from`; -1 when it does not end before `end`. */
export function closingQuote(json: Buffer, from: number, end: number): number {
  let at = from;
  while (at < end) {
    const near = Math.min(end, at + NEAR);
    while (at < near) {
      const byte = json[at]!;
      if (byte === QUOTE) return at;
      at += byte === BACKSLASH ? 2 : 1;
    }
    if (at >= end) return -1;
    const found = end === json.length ? json.indexOf(QUOTE, at) : json.subarray(at, end).indexOf(QUOTE);
    if (found === -1) return -1;
    const quote = end === json.length ? found : at + found;
    let backslashes = 0;
    while (quote - 1 - backslashes >= at && json[quote - 1 - backslashes] === BACKSLASH) backslashes++;
    if (backslashes % 2 === 0) return quote;
    at = quote + 1;
  }
  return -1;
}

/** The same bytes, with a Buffer's searches. */
export function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
