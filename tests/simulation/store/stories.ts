import type { AttemptRecord } from '@flotilla/core';
import { ID_PREFIXES } from '@flotilla/protocol';
import type { JobRow, Tables } from './tables.ts';

/** For stories and usage: who serves a job is one column of it, be it a node or a provider. */
export function served(node: string | null): { node: string | null; provider: string | null } {
  const by_provider = node?.startsWith(`${ID_PREFIXES.provider}_`) ?? false;
  return by_provider ? { node: null, provider: node } : { node, provider: null };
}

export function storiesOf(tables: Tables, job: string): Map<number, Readonly<AttemptRecord>> {
  const stories = tables.attempts.get(job) ?? new Map<number, AttemptRecord>();
  tables.attempts.set(job, stories);
  return stories;
}

type Told = Pick<AttemptRecord, 'backend' | 'outcome' | 'code' | 'message'>;

/**
 * Of the attempt that a job is at.
 * @param since when it was offered first
 */
export function storyOf(
  job: JobRow,
  { backend, outcome, code, message }: Told,
  ended_at: number,
  since = job.offered_at,
): AttemptRecord {
  return {
    attempt: job.attempt,
    ...served(job.node),
    backend,
    epoch: job.epoch!,
    outcome,
    code,
    message,
    offered_at: since!,
    started_at: job.started_at,
    ended_at,
  };
}

/** In place of an older one where the attempt was taken for lost meanwhile. */
export function tellStory(tables: Tables, job: string, story: AttemptRecord): void {
  const stories = storiesOf(tables, job);
  const before = stories.get(story.attempt);
  if (before === undefined) stories.set(story.attempt, story);
  else {
    const { outcome, code, message, backend, epoch, ended_at } = story;
    stories.set(story.attempt, { ...before, outcome, code, message, backend, epoch, ended_at });
  }
}
