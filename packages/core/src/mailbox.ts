/**
 * What is said to a peer that has no socket to be told on: it asks, is given everything it has not acknowledged, and
 * acknowledges with its next question. An answer that was lost on the way is given again.
 *
 *     posted ──take()──▶ given ──acknowledge()──▶ gone
 *        └───────────remove()─────────┴──────────▶ gone
 *
 * Who posts sees to it that letters are bounded (`size`).
 */
export interface Letter<M> {
  readonly seq: number;
  readonly message: M;
  /** It was part of an answer, which may or may not have arrived. */
  given: boolean;
}

export class Mailbox<M> {
  #letters: Letter<M>[] = [];
  #last = 0;
  #given = 0;

  get size(): number {
    return this.#letters.length;
  }

  /** The highest number that was ever given out. */
  get given(): number {
    return this.#given;
  }

  /** Whether there is a letter that was never given out. */
  get fresh(): boolean {
    return this.#letters.at(-1)?.given === false;
  }

  post(message: M): Letter<M> {
    const letter = { seq: ++this.#last, message, given: false };
    this.#letters.push(letter);
    return letter;
  }

  /** Everything that is not acknowledged, oldest first. */
  take(): readonly Letter<M>[] {
    for (const letter of this.#letters) letter.given = true;
    this.#given = Math.max(this.#given, this.#letters.at(-1)?.seq ?? 0);
    return [...this.#letters];
  }

  /** All that was given out up to this number has arrived. @returns what is acknowledged by it */
  acknowledge(seq: number): readonly Letter<M>[] {
    const arrived = this.#letters.filter((letter) => letter.given && letter.seq <= seq);
    if (arrived.length > 0) this.#letters = this.#letters.filter((letter) => !arrived.includes(letter));
    return arrived;
  }

  remove(letter: Letter<M>): void {
    this.#letters = this.#letters.filter((other) => other !== letter);
  }
}
