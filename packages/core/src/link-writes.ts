/**
 * What is sent on a link's WebSocket within one turn of the event loop, in few writes: each message is one frame (RFC 6455,
 * §5.2), and the frames of a write are made in one buffer. One by one, as `ws` frames and writes
 * them, small messages cost nearly twice as much (decision 027). `ws` reads, and says what is no message (ping, pong, close);
 * whoever closes flushes first, or what was sent before would come after the close.
 *
 *     empty ──first message──▶ gathering ──end of the turn, WRITE_MOST messages, or flush()──▶ empty
 */
export interface LinkWrites {
  text(text: string): void;
  /** One binary message of both parts, which are not changed afterwards. */
  binary(header: Uint8Array, payload: Uint8Array): void;
  flush(): void;
}

export interface LinkWritesOptions {
  /** Bytes for the socket; they are not changed afterwards. */
  write: (bytes: Buffer) => void;
  /** Runs when all that this turn found in its sockets has been seen to. */
  turnEnd: (run: () => void) => void;
  /**
   * A client masks each frame with a key of four bytes, which this fills in; zeros leave the bytes as they are
   * (docs/decisions/007-zero-mask.md). Null: a server, which does not mask.
   */
  mask: ((key: Uint8Array) => void) | null;
}

interface Message {
  readonly content: string | { header: Uint8Array; payload: Uint8Array };
  /** In bytes. */
  readonly length: number;
}

/**
 * Messages of one write: some ten requests. A turn can bring a hundred, and with one write for all of them the other end has
 * nothing to do until the last was read, and then this one has nothing: a fifth fewer requests a second.
 */
const WRITE_MOST = 32;
/** Large ones go on their way sooner: what is gathered is copied. */
const WRITE_MOST_BYTES = 256 * 1024;
/** What goes before a payload at most: two bytes, eight of length, four of mask. */
const FRAME_HEAD_MOST = 14;
const OPCODE = { text: 1, binary: 2 } as const;
const FINAL = 0x80;
const MASKED = 0x80;
const KEY_BYTES = 4;

export function linkWrites({ write, turnEnd, mask }: LinkWritesOptions): LinkWrites {
  let waiting: Message[] = [];
  let bytes = 0;
  return {
    text: (text) => add({ content: text, length: Buffer.byteLength(text) }),
    binary: (header, payload) =>
      add({ content: { header, payload }, length: header.byteLength + payload.byteLength }),
    flush,
  };

  function add(message: Message): void {
    bytes += FRAME_HEAD_MOST + message.length;
    const count = waiting.push(message);
    if (count === WRITE_MOST || bytes >= WRITE_MOST_BYTES) flush();
    else if (count === 1) turnEnd(flush);
  }

  function flush(): void {
    if (waiting.length === 0) return;
    const frames = framed(waiting, bytes, mask);
    waiting = [];
    bytes = 0;
    write(frames);
  }
}

/** @param most bytes that the frames may take */
function framed(messages: readonly Message[], most: number, mask: LinkWritesOptions['mask']): Buffer {
  const bytes = Buffer.allocUnsafe(most);
  let at = 0;
  for (const { content, length } of messages) {
    const opcode = typeof content === 'string' ? OPCODE.text : OPCODE.binary;
    at = writeHead(bytes, at, opcode, length, mask !== null);
    if (typeof content === 'string') bytes.write(content, at, length);
    else {
      bytes.set(content.header, at);
      bytes.set(content.payload, at + content.header.byteLength);
    }
    if (mask !== null) maskWith(mask, bytes.subarray(at - KEY_BYTES, at), bytes.subarray(at, at + length));
    at += length;
  }
  return bytes.subarray(0, at);
}

function maskWith(mask: (key: Uint8Array) => void, key: Uint8Array, payload: Uint8Array): void {
  mask(key);
  if (key.every((byte) => byte === 0)) return;
  for (let at = 0; at < payload.length; at++) payload[at]! ^= key[at % KEY_BYTES]!;
}

/** @returns where the payload begins, after the place of the key where there is one */
function writeHead(bytes: Buffer, at: number, opcode: number, length: number, masked: boolean): number {
  const flag = masked ? MASKED : 0;
  bytes[at] = FINAL | opcode;
  let next = at + 2;
  if (length < 126) bytes[at + 1] = flag | length;
  else if (length < 0x1_0000) {
    bytes[at + 1] = flag | 126;
    next = bytes.writeUInt16BE(length, next);
  } else {
    bytes[at + 1] = flag | 127;
    next = bytes.writeUInt32BE(0, next);
    next = bytes.writeUInt32BE(length, next);
  }
  return masked ? next + KEY_BYTES : next;
}
