import type { JobFence, ResultOutcome } from '@flotilla/core';
import { served } from '../job-columns.ts';
import type { Sql, Statement } from '../sql.ts';

export const FENCE = { id: 'text', attempt: 'bigint', node: 'text', epoch: 'bigint' } as const;
/** What `tellStory` reads of a batch. */
export const STORY = { ...FENCE, backend: 'text', outcome: 'text', code: 'text', message: 'text' } as const;

/**
 * The rows that a batch names, locked in order of id, so that batches of two replicas cannot wait for each other; with
 * each what is asked of it, so that nothing joins the two again, and whether the item's fence is the one that counts now.
 * The plan is kept, and may have been made while the table was empty: of an array of ids it expects ten rows, whatever it
 * believes of the table, and so looks up these, and then the few that are held, by their ids.
 * @param asked further columns, of `input` and of `j`
 */
export const heldWith = (asked = '', started_at = 'j.started_at'): string => `held as materialized (
    select j.id, j.state, j.accepted_attempt, j.result_digest,
      j.attempt, j.node, j.epoch, j.offered_at, ${started_at} as started_at,
      j.state in ('leased', 'running')
        and j.attempt = input.attempt and j.node = input.node and j.epoch = input.epoch as holds,
      input.attempt as asked_attempt${asked === '' ? '' : `, ${asked}`}
    from jobs j join input using (id), now
    where j.id = any (array(select id from input)) and not j.attached
    order by j.id for no key update of j)`;

/** What a result is answered with: the rules of `completed` and `failed` in core's job.ts. */
export const RESULT_OUTCOME = `case
    when holds then 'accepted'
    when accepted_attempt is distinct from asked_attempt then 'stale'
    when result_digest = digest then 'duplicate'
    else 'conflict' end`;

/**
 * The story of the attempt that a statement ends; in place of an older one where it was taken for lost meanwhile.
 * @param since when it was offered first
 */
export const tellStory = (since = 'offered_at'): string => `
    insert into attempts (job, attempt, node, provider, backend, epoch, outcome, code, message,
      offered_at, started_at, ended_at)
    select id, attempt, ${served('node')}, backend, epoch, outcome, code, message, ${since}, started_at, now.ms
    from held, now
    where holds
    on conflict (job, attempt) do update
      set outcome = excluded.outcome, code = excluded.code, message = excluded.message, backend = excluded.backend,
        epoch = excluded.epoch, ended_at = excluded.ended_at`;

/**
 * Sends a batch and puts the answers in its order. A statement can move a job once, so a second item of the same job
 * goes into a second statement, as if it had come later.
 */
export async function moveJobs<Item extends JobFence>(
  sql: Sql,
  statement: Statement,
  batch: Item[],
  paramsOf: (items: Item[]) => string[],
): Promise<ResultOutcome[]> {
  const outcomes: ResultOutcome[] = batch.map(() => 'stale');
  for (let places = [...batch.keys()]; places.length > 0; ) {
    const round = new Map<string, number>();
    for (const place of places) if (!round.has(batch[place]!.id)) round.set(batch[place]!.id, place);
    const items = [...round.values()].map((place) => batch[place]!);
    const rows = await sql.query<{ id: string; outcome: ResultOutcome }>(statement, paramsOf(items));
    for (const { id, outcome } of rows) outcomes[round.get(id)!] = outcome;
    places = places.filter((place) => round.get(batch[place]!.id) !== place);
  }
  return outcomes;
}
