import { setTimeout as pause } from 'node:timers/promises';
import { JOBS_IN_BATCH } from '@flotilla/protocol';
import { type Flotilla, FlotillaApiError, type Job, type JobVerdict } from '@flotilla/sdk';
import { note } from '../terminal/output.ts';
import { type JobFlags, createKeys, hasKey, jobText, withKey } from './job-text.ts';

/**
 * Jobs from lines, submitted in batches while the lines are read. Each has an idempotency key made of what it is, so a
 * command that was cut is simply run again: what was accepted stays one job.
 */
export interface Submitted {
  line: number;
  verdict: JobVerdict;
}

interface Line {
  line: number;
  job: string;
}

/** Of one request, well below what a control plane takes. */
const BATCH_BYTES = 4 * 1024 * 1024;
const WAITED_FOR_AT_ONCE = 16;
const PROGRESS_EVERY_MS = 5000;
const RESULT_PATIENCE_MS = 60_000;
const PAUSE_MS = 1000;

export async function* submitLines(
  client: Flotilla,
  lines: AsyncIterable<string>,
  flags: JobFlags,
  key_prefix: string,
): AsyncGenerator<Submitted[], void> {
  const keyOf = createKeys(key_prefix);
  let batch: Line[] = [];
  let refused: Submitted[] = [];
  let bytes = 0;
  let line = 0;
  for await (const written of lines) {
    line++;
    if (written.trim() === '') continue;
    let job: string;
    try {
      job = jobText(written, flags);
      if (!hasKey(job)) job = withKey(job, keyOf(job));
    } catch (error) {
      const { message } = error as Error;
      refused.push({ line, verdict: { error: { code: 'invalid_request', message, param: null } } });
      continue;
    }
    const length = Buffer.byteLength(job);
    if (batch.length >= JOBS_IN_BATCH || (batch.length > 0 && bytes + length > BATCH_BYTES)) {
      yield* send();
    }
    batch.push({ line, job });
    bytes += length;
  }
  yield* send();

  async function* send(): AsyncGenerator<Submitted[], void> {
    const asked = batch;
    const unread = refused;
    [batch, refused, bytes] = [[], [], 0];
    const verdicts = asked.length === 0 ? [] : await client.jobs.submitBatch(asked.map(({ job }) => job));
    const answered = asked.map((one, place) => ({ line: one.line, verdict: verdicts[place]! }));
    const all = [...answered, ...unread].toSorted((a, b) => a.line - b.line);
    if (all.length > 0) yield all;
  }
}

/**
 * The jobs once they have ended, in their order. The next ones are asked for when one was taken, so there are never more
 * results in memory than jobs that are waited for at once.
 * @param waitFor what is told of each: the job, or with its result
 */
export async function* waitForAll(
  ids: readonly string[],
  waitFor: (id: string) => Promise<Job>,
): AsyncGenerator<Job, void> {
  const waiting: Promise<Job>[] = [];
  let next = 0;
  let told_ms = performance.now();
  for (let ended = 0; ended < ids.length; ended++) {
    while (next < ids.length && waiting.length < WAITED_FOR_AT_ONCE) {
      const job = waitFor(ids[next++]!);
      // Looked at in its turn; until then a failure of it is not an unhandled one.
      job.catch(() => undefined);
      waiting.push(job);
    }
    yield await waiting.shift()!;
    if (performance.now() - told_ms < PROGRESS_EVERY_MS) continue;
    told_ms = performance.now();
    note(`${ended + 1} of ${ids.length} have ended.`);
  }
}

/** The job with its result, once it has ended. Of events none has one. */
export async function waitForResult(client: Flotilla, id: string): Promise<Job> {
  await client.jobs.wait(id);
  const give_up_ms = performance.now() + RESULT_PATIENCE_MS;
  for (;;) {
    try {
      return await client.jobs.show(id);
    } catch (error) {
      // Results that others read may have all the room that there is for a moment.
      if (!(error instanceof FlotillaApiError) || !error.retryable || performance.now() > give_up_ms)
        throw error;
      await pause(error.retry_after_ms ?? PAUSE_MS);
    }
  }
}
