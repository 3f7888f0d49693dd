/**
 * A request body as it comes in frames: in order, without holes, exactly as long as the offer said. Bytes that come
 * again after a reconnect are skipped.
 */
export class RequestBody {
  readonly length: number;
  #pieces: Uint8Array[] = [];
  #received = 0;

  constructor(length: number) {
    this.length = length;
  }

  get received(): number {
    return this.#received;
  }

  /** @returns false when the frame leaves a hole or exceeds the announced length */
  take(offset: number, payload: Uint8Array): boolean {
    if (offset > this.#received || offset + payload.byteLength > this.length) return false;
    const fresh = payload.subarray(this.#received - offset);
    if (fresh.byteLength > 0) {
      this.#pieces.push(fresh);
      this.#received += fresh.byteLength;
    }
    return true;
  }

  isWhole(length: number): boolean {
    return length === this.length && this.#received === this.length;
  }

  bytes(): Buffer {
    const only = this.#pieces.length === 1 ? this.#pieces[0] : undefined;
    if (only !== undefined) return Buffer.from(only.buffer, only.byteOffset, only.byteLength);
    const whole = Buffer.concat(this.#pieces, this.#received);
    this.#pieces = [whole];
    return whole;
  }

  /** The bytes are needed no more. */
  drop(): void {
    this.#pieces = [];
  }
}
