import type { JobFilter, PageRequest, Store, StoredJob } from '@flotilla/core';
import { type ExplainView, FlotillaError, isTerminal, type JobView } from '@flotilla/protocol';
import type { Principal } from '../accounts/principal.ts';
import type { OpenJobs } from '../dispatch/open-jobs.ts';
import { iso, isoOrNull } from './iso.ts';
import { knownId, notFound, pageRequest } from './paging.ts';
import { type Handlers, present } from './routing.ts';

type JobRoutes = 'listJobs' | 'showJob' | 'explainJob' | 'cancelJob';

/**
 * Open attached jobs are in memory, ended ones in the store; where both know one, memory is newer. Without admin a key
 * sees what it created; another's job does not exist for it. Which node served is for those who may read nodes.
 */
export function jobRoutes(
  open: OpenJobs,
  store: Pick<Store, 'listJobs' | 'findJob'>,
): Pick<Handlers, JobRoutes> {
  return {
    async listJobs({ query, principal }) {
      const { limit, after, ...rest } = query;
      const filter: JobFilter = { ...present(rest), ...(!principal.admin && { key: principal.key.id }) };
      const page = await list(filter, pageRequest({ limit, after }, 'job'));
      return { ...page, data: page.data.map((job) => shown(job, principal)) };
    },
    showJob: async ({ params: { id }, principal }) => shown(await find(id, principal), principal),
    async explainJob({ params: { id }, principal }) {
      const job = await find(id, principal);
      return explained(open.explain(id) ?? ended(job), principal);
    },
    async cancelJob({ params: { id }, principal }) {
      const job = await find(id, principal);
      if (job.state === 'cancelled') return shown(job, principal);
      const message =
        job.key === principal.key.id ? 'Cancelled by its own key.' : 'Cancelled by an operator.';
      if (isTerminal(job.state))
        throw new FlotillaError('conflict', `The job has ended already: it ${job.state}.`);
      if (!open.cancel(id, message))
        throw new FlotillaError('conflict', 'The job is not held by this replica.');
      const after: JobView = {
        ...job,
        state: 'cancelled',
        position: null,
        error: { code: 'cancelled', message },
      };
      return shown(after, principal);
    },
  };

  async function find(id: string, principal: Principal): Promise<JobView> {
    const live = open.find(knownId('job', id, 'job'));
    const stored = live === undefined ? await store.findJob(id) : undefined;
    const job = live ?? (stored === undefined ? undefined : jobView(stored));
    if (job === undefined || (!principal.admin && job.key !== principal.key.id)) throw notFound('job', id);
    return job;
  }

  async function list(
    filter: JobFilter,
    page: PageRequest,
  ): Promise<{ data: JobView[]; next_after: string | null }> {
    // Before the query: what ends while the store is asked is then seen as it was, not missed on both sides.
    const live = open.list();
    const { rows, next_after } = await store.listJobs(filter, page);
    const live_ids = new Set(live.map((job) => job.id));
    const within = live.filter(
      (job) =>
        matches(job, filter) &&
        (page.after === undefined || job.id < page.after) &&
        // Older than the store's page: it belongs to a later one.
        (next_after === null || job.id >= next_after),
    );
    const stored = rows.filter((row) => !live_ids.has(row.id)).map(jobView);
    const data = [...within, ...stored].sort((a, b) => (a.id < b.id ? 1 : -1));
    const kept = data.slice(0, page.limit);
    return { data: kept, next_after: data.length > page.limit ? kept.at(-1)!.id : next_after };
  }
}

function matches(job: JobView, filter: JobFilter): boolean {
  return (
    (filter.key === undefined || job.key === filter.key) &&
    (filter.state === undefined || job.state === filter.state) &&
    (filter.model === undefined || job.model === filter.model)
  );
}

function jobView(job: StoredJob): JobView {
  return {
    id: job.id,
    kind: job.kind,
    attached: job.attached,
    state: job.state,
    model: job.model,
    operation: job.operation,
    key: job.key,
    request_id: job.request_id,
    position: null,
    attempts: job.attempts.map(({ epoch: _epoch, offered_at, started_at, ended_at, ...attempt }) => ({
      ...attempt,
      offered_at: iso(offered_at),
      started_at: isoOrNull(started_at),
      ended_at: isoOrNull(ended_at),
    })),
    error: job.error_code === null ? null : { code: job.error_code, message: job.error_message ?? '' },
    created_at: iso(job.created_at),
    finished_at: isoOrNull(job.finished_at),
  };
}

function ended({ id, state }: JobView): ExplainView {
  return {
    id,
    state,
    summary: `It ${isTerminal(state) ? `has ended: ${state}` : `is ${state}`}.`,
    nodes: [],
  };
}

function shown(job: JobView, principal: Principal): JobView {
  if (principal.has('nodes:read')) return job;
  return { ...job, attempts: job.attempts.map((attempt) => ({ ...attempt, node: null, backend: null })) };
}

function explained(explanation: ExplainView, principal: Principal): ExplainView {
  if (principal.has('nodes:read')) return explanation;
  const nodes = explanation.nodes.map((node, index) => ({ ...node, node: '', name: `node ${index + 1}` }));
  return { ...explanation, nodes };
}
