import { FlotillaError } from './errors.ts';

/**
 * Binary frames of the node link: `[u8 kind][u32 stream][u64 offset][bytes]`, big-endian, at most 64 KiB in all.
 * Bodies travel in them exactly as they came; the offset is the position of the first byte in its direction of the
 * stream, so that a frame can be repeated after a reconnect without repeating a byte to the client.
 */
export const FRAME_KIND = {
  requestBody: 1,
  /** JSON `{status, headers}`; offset 0. */
  responseHead: 2,
  responseBody: 3,
  /** Offset is the body's whole length; one payload byte says how it ended. */
  end: 4,
  terminal: 5,
} as const;
export type FrameKind = (typeof FRAME_KIND)[keyof typeof FRAME_KIND];

export const END_OUTCOME = { complete: 0, cut: 1 } as const;

export const FRAME_HEADER_BYTES = 13;
export const FRAME_MAX_BYTES = 64 * 1024;
/** The most body bytes that one frame carries. */
export const FRAME_PAYLOAD_MAX_BYTES = FRAME_MAX_BYTES - FRAME_HEADER_BYTES;
/** The largest JSON text frame. */
export const MESSAGE_MAX_BYTES = 256 * 1024;

export interface Frame {
  kind: FrameKind;
  /** Valid on one connection only. */
  stream: number;
  offset: number;
  payload: Uint8Array;
}

/** The 13 bytes before the payload; kept apart so that a payload is never copied to be framed. */
export function encodeFrameHeader(kind: FrameKind, stream: number, offset: number): Uint8Array {
  const header = new Uint8Array(FRAME_HEADER_BYTES);
  header[0] = kind;
  writeUint32(header, 1, stream);
  writeUint32(header, 5, Math.floor(offset / 0x1_0000_0000));
  writeUint32(header, 9, offset);
  return header;
}

/** By hand: a DataView would move the small array off the heap, which costs ten times as much. */
function writeUint32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 24;
  bytes[at + 1] = value >>> 16;
  bytes[at + 2] = value >>> 8;
  bytes[at + 3] = value;
}

export function encodeFrame(
  kind: FrameKind,
  stream: number,
  offset: number,
  payload: Uint8Array,
): Uint8Array {
  const bytes = new Uint8Array(FRAME_HEADER_BYTES + payload.byteLength);
  bytes.set(encodeFrameHeader(kind, stream, offset), 0);
  bytes.set(payload, FRAME_HEADER_BYTES);
  return bytes;
}

/**
 * Reads one binary frame; the payload is a view, not a copy.
 * @throws FlotillaError `invalid_request` when it is no frame, `payload_too_large` over 64 KiB
 */
export function decodeFrame(bytes: Uint8Array): Frame {
  if (bytes.byteLength > FRAME_MAX_BYTES) {
    throw new FlotillaError('payload_too_large', `A binary frame may have ${FRAME_MAX_BYTES} bytes at most.`);
  }
  if (bytes.byteLength < FRAME_HEADER_BYTES) {
    throw new FlotillaError('invalid_request', `A binary frame has ${FRAME_HEADER_BYTES} bytes at least.`);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const kind = view.getUint8(0);
  if (kind < FRAME_KIND.requestBody || kind > FRAME_KIND.terminal) {
    throw new FlotillaError('invalid_request', `Unknown binary frame kind ${kind}.`);
  }
  const offset = view.getUint32(5) * 0x1_0000_0000 + view.getUint32(9);
  if (!Number.isSafeInteger(offset)) {
    throw new FlotillaError('invalid_request', 'The offset of a binary frame exceeds 2^53.');
  }
  return {
    kind: kind as FrameKind,
    stream: view.getUint32(1),
    offset,
    payload: bytes.subarray(FRAME_HEADER_BYTES),
  };
}
