/**
 * A digest of a set of (job, attempt) pairs that both sides of a link keep: equal sets give equal digests, in whatever
 * order they came to be. Adding and removing are O(1): each pair is hashed to 64 bits and added to, or taken from, a
 * sum. (A sum, not XOR: a pair counted twice by mistake must show.) It finds mistakes, it does not resist an attacker:
 * a node could only lie about its own work.
 */
export class LeasesDigest {
  #low = 0;
  #high = 0;
  #count = 0;

  get count(): number {
    return this.#count;
  }

  /** The digest as it travels in a beat. */
  get value(): string {
    return `${this.#count}-${hex(this.#high)}${hex(this.#low)}`;
  }

  add(job: string, attempt: number): void {
    const [low, high] = hash(job, attempt);
    this.#low = (this.#low + low) >>> 0;
    this.#high = (this.#high + high) >>> 0;
    this.#count++;
  }

  remove(job: string, attempt: number): void {
    const [low, high] = hash(job, attempt);
    this.#low = (this.#low - low) >>> 0;
    this.#high = (this.#high - high) >>> 0;
    this.#count--;
  }

  clear(): void {
    this.#low = 0;
    this.#high = 0;
    this.#count = 0;
  }
}

function hex(word: number): string {
  return word.toString(16).padStart(8, '0');
}

/** Two multiplicative hashes over the text, each stirred by the other at the end. */
function hash(job: string, attempt: number): [number, number] {
  let low = 0xdeadbeef ^ attempt;
  let high = 0x41c6ce57 ^ Math.imul(attempt, 0x9e3779b1);
  for (let index = 0; index < job.length; index++) {
    const unit = job.charCodeAt(index);
    low = Math.imul(low ^ unit, 0x9e3779b1);
    high = Math.imul(high ^ unit, 0x5f356495);
  }
  low = Math.imul(low ^ (low >>> 16), 0x85ebca6b) ^ Math.imul(high ^ (high >>> 13), 0xc2b2ae35);
  high = Math.imul(high ^ (high >>> 16), 0x85ebca6b) ^ Math.imul(low ^ (low >>> 13), 0xc2b2ae35);
  return [low >>> 0, high >>> 0];
}
