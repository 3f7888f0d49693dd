/** One event of a `text/event-stream`, or a comment (how a server says that it is still there). */
export interface SseEvent {
  /** `message` unless the stream names it; `comment` for a comment, whose text is `data`. */
  event: string;
  data: string;
  id?: string;
}

/**
 * Reads events as they come. Leaving the loop early cancels the body, which is how the server learns that nobody
 * listens any more. An event that the stream does not finish with an empty line is no event, as the standard has it.
 */
export async function* readEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<SseEvent, void> {
  const reader = body.getReader();
  const assembler = new EventAssembler();
  const decoder = new TextDecoder();
  let ended = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      yield* assembler.push(decoder.decode(value, { stream: true }));
    }
    ended = true;
  } finally {
    if (!ended) await reader.cancel().catch(() => undefined);
    reader.releaseLock();
  }
}

class EventAssembler {
  #rest = '';
  #event = '';
  #id: string | undefined;
  #data: string[] = [];

  *push(text: string): Generator<SseEvent, void> {
    const buffered = this.#rest + text;
    let from = 0;
    for (const match of buffered.matchAll(/\r\n|\n|\r/g)) {
      // A carriage return at the very end may be the first half of CRLF.
      if (match[0] === '\r' && match.index === buffered.length - 1) break;
      const event = this.#line(buffered.slice(from, match.index));
      from = match.index + match[0].length;
      if (event) yield event;
    }
    this.#rest = buffered.slice(from);
  }

  #line(line: string): SseEvent | undefined {
    if (line === '') return this.#dispatch();
    if (line.startsWith(':')) return { event: 'comment', data: line.slice(1).trim() };
    const colon = line.indexOf(':');
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(line[colon + 1] === ' ' ? colon + 2 : colon + 1);
    if (field === 'data') this.#data.push(value);
    else if (field === 'event') this.#event = value;
    else if (field === 'id') this.#id = value;
    return undefined;
  }

  #dispatch(): SseEvent | undefined {
    const data = this.#data;
    const event = this.#event === '' ? 'message' : this.#event;
    this.#data = [];
    this.#event = '';
    if (data.length === 0) return undefined;
    return { event, data: data.join('\n'), ...(this.#id === undefined ? {} : { id: this.#id }) };
  }
}
