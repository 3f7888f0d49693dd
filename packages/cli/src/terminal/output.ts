let onReaderGone = (): void => process.exit(0);

/**
 * A reader that has seen enough (`| head`) is no failure: the command ends in silence, or goes on without output where
 * it is there to run (`keepRunningWithoutReader`).
 */
export function watchOutput(): void {
  for (const stream of [process.stdout, process.stderr]) {
    stream.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EPIPE') throw error;
      onReaderGone();
    });
  }
}

export function keepRunningWithoutReader(): void {
  onReaderGone = () => undefined;
}

/** A line of what was asked for. */
export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

/** A line about it, for the person who looks on; never mixed into what a program reads. */
export function note(text: string): void {
  process.stderr.write(`${text}\n`);
}

export function printJson(value: unknown): void {
  print(JSON.stringify(value, null, process.stdout.isTTY ? 2 : undefined));
}
