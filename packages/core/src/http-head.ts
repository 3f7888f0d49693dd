/**
 * Reads the head of an HTTP/1.x answer as it stands before its body in a stream of bytes (`curl -i` prints it so), in
 * chunks of any size. Heads of interim answers (1xx) are passed over.
 *
 *     reading ──empty line──▶ whole          reading ──no status line, or over 16 KiB──▶ broken
 */
export interface HttpHead {
  status: number;
  /** Names in lower case; of one that occurs twice, the last. */
  headers: Record<string, string>;
}

export const HTTP_HEAD_MAX_BYTES = 16 * 1024;

const STATUS_LINE = /^HTTP\/\d(?:\.\d)? (\d{3})(?: .*)?$/;
const FIELD = /^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*$/;
const END = /\r?\n\r?\n/;

export class HttpHeadReader {
  #kept = Buffer.alloc(0);

  /** @returns the head and the bytes behind it; undefined while it is not whole; `broken` when it never will be */
  push(chunk: Uint8Array): { head: HttpHead; rest: Uint8Array } | 'broken' | undefined {
    this.#kept = Buffer.concat([this.#kept, chunk]);
    for (;;) {
      // Byte for character, so that an index in the text is one in the bytes.
      const text = this.#kept.toString('latin1', 0, HTTP_HEAD_MAX_BYTES);
      const end = END.exec(text);
      if (end === null) {
        const hopeless = text.length >= HTTP_HEAD_MAX_BYTES || !'HTTP/'.startsWith(text.slice(0, 5));
        return hopeless ? 'broken' : undefined;
      }
      const head = readHead(text.slice(0, end.index));
      if (head === undefined) return 'broken';
      const rest = this.#kept.subarray(end.index + end[0].length);
      if (head.status >= 200) return { head, rest };
      this.#kept = rest;
    }
  }
}

function readHead(text: string): HttpHead | undefined {
  const [first = '', ...lines] = text.split(/\r?\n/);
  const status = STATUS_LINE.exec(first)?.[1];
  if (status === undefined) return undefined;
  const headers: Record<string, string> = {};
  for (const line of lines) {
    const [, name, value] = FIELD.exec(line) ?? [];
    if (name !== undefined && value !== undefined) headers[name.toLowerCase()] = value;
  }
  return { status: Number(status), headers };
}
