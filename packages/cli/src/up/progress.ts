import { fit, oneLine } from '../terminal/text.ts';

/** One line that tells what is waited for: rewritten in a terminal, printed once each elsewhere. */
export class Progress {
  readonly #silent: boolean;
  #shown = false;

  constructor(silent: boolean) {
    this.#silent = silent;
  }

  tell(text: string): void {
    if (this.#silent) return;
    const { stderr } = process;
    if (!stderr.isTTY) {
      stderr.write(`${oneLine(text)}\n`);
      return;
    }
    stderr.write(`\r\u001B[K${fit(oneLine(text), stderr.columns - 1)}`);
    this.#shown = true;
  }

  /** Takes the line away, for what comes next. */
  clear(): void {
    if (this.#shown) process.stderr.write('\r\u001B[K');
    this.#shown = false;
  }
}
