let runs_without_reader = false;

/**
 * A reader that has seen enough (`| head`) is no failure: the command ends in silence. What is there to run goes on
 * without output (`keepRunningWithoutReader`), also when the disk of its log is full; any other command has failed then.
 */
export function watchOutput(): void {
  for (const stream of [process.stdout, process.stderr]) {
    stream.on('error', (error: NodeJS.ErrnoException) => {
      if (runs_without_reader) return;
      if (error.code === 'EPIPE') process.exit(0);
      if (stream === process.stdout) note(`error: The output cannot be written: ${error.message}`);
      process.exit(1);
    });
  }
}

export function keepRunningWithoutReader(): void {
  runs_without_reader = true;
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
