import { createHash } from 'node:crypto';
import type { JobRequest } from '@flotilla/sdk';

/** What flags say of a job whose request is all that was given. */
export type JobFlags = Partial<Omit<JobRequest, 'kind' | 'request'>>;

/**
 * The text of a job out of what somebody wrote: a whole job, which goes as it is, or the body of a request, which is
 * put into one. Neither is printed anew, so every number reaches the backend digit for digit.
 * @throws Error that says what is wrong with the text
 */
export function jobText(written: string, flags: JobFlags): string {
  const text = written.trim();
  const value = readObject(text);
  if ('request' in value) {
    const [flag] = Object.keys(flags);
    if (flag !== undefined) {
      throw new Error(`It is a whole job (it has a \`request\`), so write its \`${flag}\` into it.`);
    }
    return text;
  }
  const model = flags.model ?? value['model'];
  if (typeof model !== 'string') {
    throw new Error('No model: name one with --model, or as `model` in the request.');
  }
  const envelope = JSON.stringify({ ...flags, model });
  return `${envelope.slice(0, -1)},"request":${text}}`;
}

/** The job with a key of its own for a batch. The job is an object with fields already. */
export function withKey(job: string, key: string): string {
  return `${job.slice(0, job.lastIndexOf('}'))},"idempotency_key":${JSON.stringify(key)}}`;
}

/** Names jobs by what they are and, of equal ones, their turn: the same file gives the same keys each time. */
export function createKeys(prefix: string): (job: string) => string {
  const seen = new Map<string, number>();
  return (job) => {
    const hash = createHash('sha256').update(job).digest('hex').slice(0, 40);
    const turn = (seen.get(hash) ?? 0) + 1;
    seen.set(hash, turn);
    return `${prefix}${hash}-${turn}`;
  };
}

export function hasKey(job: string): boolean {
  return 'idempotency_key' in readObject(job);
}

/** The words of an answer, as far as it is one of OpenAI's kind. */
export function wordsOf(result: string): string | undefined {
  try {
    const { choices } = JSON.parse(result) as {
      choices?: { message?: { content?: string | null }; text?: string }[];
    };
    const words = choices?.map(({ message, text }) => message?.content ?? text ?? '').join('\n');
    return words === '' ? undefined : words;
  } catch {
    return undefined;
  }
}

function readObject(text: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`It is not JSON: ${(error as Error).message}`, { cause: error });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new Error('It is no JSON object: give the body of a request, or a job.');
  }
  return value as Record<string, unknown>;
}
