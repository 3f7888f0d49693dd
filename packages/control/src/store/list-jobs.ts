import type { JobFilter, Page, PageRequest, StoredJob } from '@flotilla/core';
import { JOB_STATES } from '@flotilla/protocol';
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

export async function listJobs(sql: Sql, filter: JobFilter, page: PageRequest): Promise<Page<StoredJob>> {
  const conditions = new Conditions();
  conditions.when(filter.key, (key) => `key = ${key}`);
  conditions.when(filter.model, (model) => `model = ${model}`);
  if (filter.state !== undefined) conditions.add(`state = '${known(filter.state)}'`);
  conditions.when(page.after, (after) => `id < ${after}`);
  const limit = conditions.param(page.limit + 1);
  const text = `select ${COLUMNS} from jobs ${conditions.where} order by id desc limit ${limit}`;
  return pageOf(await sql.query<StoredJob>(text, conditions.params), page.limit, (job) => job.id);
}

/** States go into the text, so that the planner can prove the partial index `jobs_by_state`: only known ones may. */
function known(state: string): string {
  if ((JOB_STATES as readonly string[]).includes(state)) return state;
  throw new TypeError(`No job state is called ${state}.`);
}
