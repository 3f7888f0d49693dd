import { note } from '../terminal/output.ts';
import { fit, oneLine } from '../terminal/text.ts';

/**
 * One line that tells what is waited for: rewritten in a terminal, printed once each elsewhere.
 *
 *     telling ── end() ──▶ silent: what a start that is being stopped still does is no news
 */
export class Progress {
  #silent: boolean;
  #shown = false;
  #last = '';

  constructor(silent: boolean) {
    this.#silent = silent;
  }

  tell(text: string): void {
    if (this.#silent || text === this.#last) return;
    this.#last = text;
    const { stderr } = process;
    if (!stderr.isTTY) {
      stderr.write(`${oneLine(text)}\n`);
      return;
    }
    stderr.write(`\r\u001B[K${fit(oneLine(text), stderr.columns - 1)}`);
    this.#shown = true;
  }

  /** A line that stays: what its reader should know or mend. */
  warn(text: string): void {
    if (this.#silent) return;
    this.clear();
    note(`warning: ${oneLine(text)}`);
  }

  end(): void {
    this.clear();
    this.#silent = true;
  }

  /** Takes the line away, for what comes next. */
  clear(): void {
    if (this.#shown) process.stderr.write('\r\u001B[K');
    this.#shown = false;
  }
}
