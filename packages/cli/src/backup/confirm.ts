import { createInterface } from 'node:readline/promises';
import { CommandError } from '../failure.ts';
import { note } from '../terminal/output.ts';

/** A person has to say it twice; a program has said it with the flag. */
export async function confirmReplace(place: string): Promise<void> {
  note(`--replace: EVERYTHING that is in ${place} now is given up: keys, nodes, jobs, usage.`);
  if (!process.stdin.isTTY || !process.stderr.isTTY) return;
  const ask = createInterface({ input: process.stdin, output: process.stderr });
  try {
    const answer = await ask.question('Write "replace" to go on: ');
    if (answer.trim() !== 'replace') throw new CommandError('Nothing was changed.');
  } finally {
    ask.close();
  }
}
