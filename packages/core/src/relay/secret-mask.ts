/**
 * Takes a secret out of bytes that come in chunks of any size, wherever it stands literally. What may be its beginning at
 * the end of a chunk waits for the next one; nothing else does, and what does not hold the secret goes on as it came.
 */
export interface SecretMask {
  /** @returns what goes on now */
  push(chunk: Buffer): Buffer;
  /** No more comes. @returns what still waited */
  rest(): Buffer;
}

export const MASK = '***';
const EMPTY = Buffer.alloc(0);

export function newSecretMask(text: string): SecretMask {
  const secret = Buffer.from(text);
  const mask = Buffer.from(MASK);
  let held: Buffer = EMPTY;
  return {
    push(chunk) {
      const bytes = held.length === 0 ? chunk : Buffer.concat([held, chunk]);
      const parts: Buffer[] = [];
      let from = 0;
      for (let at = bytes.indexOf(secret); at !== -1; at = bytes.indexOf(secret, from)) {
        parts.push(bytes.subarray(from, at), mask);
        from = at + secret.length;
      }
      const end = beginningIn(bytes, Math.max(from, bytes.length - secret.length + 1));
      held = bytes.subarray(end);
      const last = bytes.subarray(from, end);
      return parts.length === 0 ? last : Buffer.concat([...parts, last]);
    },
    rest() {
      const waited = held;
      held = EMPTY;
      return waited;
    },
  };

  /** Where the secret may have begun, at `from` or later; else the end. */
  function beginningIn(bytes: Buffer, from: number): number {
    for (let at = bytes.indexOf(secret[0]!, from); at !== -1; at = bytes.indexOf(secret[0]!, at + 1)) {
      if (secret.compare(bytes, at, bytes.length, 0, bytes.length - at) === 0) return at;
    }
    return bytes.length;
  }
}
