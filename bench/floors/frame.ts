/**
 * The frames of the two-hop floor: `[u32 request][u8 kind][bytes]`. Bytes, not JSON: to put a body into JSON costs more
 * than all else that a bare relay does, and who is measured against the floor does not do it.
 */
export const KIND = { request: 1, head: 2, piece: 3, end: 4 } as const;

const HEADER_BYTES = 5;

export function frame(id: number, kind: number, payload: Buffer): Buffer {
  const bytes = Buffer.allocUnsafe(HEADER_BYTES + payload.length);
  bytes.writeUInt32BE(id);
  bytes[4] = kind;
  payload.copy(bytes, HEADER_BYTES);
  return bytes;
}

export function readFrame(bytes: Buffer): { id: number; kind: number; payload: Buffer } {
  return { id: bytes.readUInt32BE(), kind: bytes[4]!, payload: bytes.subarray(HEADER_BYTES) };
}
