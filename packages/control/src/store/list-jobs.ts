import type { JobFilter, Page, PageRequest, StoredJob } from '@flotilla/core';
import { isTerminal, JOB_STATES } from '@flotilla/protocol';
import { JOB_COLUMNS } from './job-columns.ts';
import { Conditions, pageOf } from './paging.ts';
import { prepared, type Sql } from './sql.ts';

const COLUMNS = `${JOB_COLUMNS},
  coalesce((
    select jsonb_agg(jsonb_build_object(
      'attempt', a.attempt, 'node', a.node, 'provider', a.provider, 'backend', a.backend, 'epoch', a.epoch, 'outcome', a.outcome,
      'code', a.code, 'message', a.message, 'offered_at', a.offered_at, 'started_at', a.started_at,
      'ended_at', a.ended_at) order by a.attempt)
    from attempts a where a.job = jobs.id), '[]') as attempts`;

const find = prepared('find-job', `select ${COLUMNS} from jobs where id = $1`);

export async function findJob(sql: Sql, id: string): Promise<StoredJob | undefined> {
  const [job] = await sql.query<StoredJob>(find, [id]);
  return job;
}

/** Where jobs are looked for: the condition of an index, which the planner proves from the text. */
const ENDED = '(select * from jobs where finished_at is not null)';
const OPEN = '(select * from jobs where finished_at is null)';
const QUEUED = `(select * from jobs where state = 'queued')`;
/** Read whole, in no order (`offset 0`): no more than the slots of the fleet, and the attached requests that are long. */
const HELD = `(
  (select id, key, model, state from jobs where node is not null and state in ('leased', 'running') offset 0)
  union all
  (select id, key, model, state from jobs where attached and finished_at is null and state <> 'queued' offset 0))`;

/**
 * Open jobs and ended ones are in different indexes (decision 025), so a page is the newest of what each of them has. They
 * are in order of id there, so that a page costs no more while a million jobs wait; but for `state=succeeded` with neither key
 * nor model, which no index has: it passes what waits.
 */
export async function listJobs(sql: Sql, filter: JobFilter, page: PageRequest): Promise<Page<StoredJob>> {
  const conditions = new Conditions();
  conditions.when(filter.key, (key) => `key = ${key}`);
  conditions.when(filter.model, (model) => `model = ${model}`);
  if (filter.state !== undefined) conditions.add(`state = '${known(filter.state)}'`);
  conditions.when(page.after, (after) => `id < ${after}`);
  const limit = conditions.param(page.limit + 1);
  const newest = (place: string) =>
    `(select id from ${place} j ${conditions.where} order by id desc limit ${limit})`;
  const found = isOnly(filter, 'queued') ? [newestQueued(newest)] : placesOf(filter).map(newest);
  const text = `
    with page as materialized (
      select id from (${found.join(' union ')}) found order by id desc limit ${limit})
    select ${COLUMNS} from jobs where id = any (array(select id from page)) order by id desc`;
  return pageOf(await sql.query<StoredJob>(text, conditions.params), page.limit, (job) => job.id);
}

function placesOf({ key, model, state }: JobFilter): string[] {
  if (state !== undefined && isTerminal(state)) return [ENDED];
  if (state === 'leased' || state === 'running') return [HELD];
  const open = key === undefined ? [QUEUED, HELD] : [OPEN];
  if (state === 'queued') return open.slice(0, 1);
  return key === undefined && model === undefined ? ['jobs'] : [ENDED, ...open];
}

function isOnly({ key, model, state }: JobFilter, wanted: string): boolean {
  return state === wanted && key === undefined && model === undefined;
}

/** The newest of each model: `jobs_queued_by_model` is walked from one model to the next, as in `held-jobs`. */
function newestQueued(newest: (place: string) => string): string {
  return `(
    with recursive models as (
      (select model from jobs where state = 'queued' order by model desc, id desc limit 1)
      union all
      select (select model from jobs where state = 'queued' and model < models.model order by model desc, id desc limit 1)
      from models where model is not null)
    select id from models cross join lateral
      ${newest(`(select * from jobs where state = 'queued' and model = models.model)`)} heads)`;
}

/** States go into the text, so that the planner can prove the condition of an index: only known ones may. */
function known(state: string): string {
  if ((JOB_STATES as readonly string[]).includes(state)) return state;
  throw new TypeError(`No job state is called ${state}.`);
}
