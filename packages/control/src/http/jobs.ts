import type { DetachedState, JobFilter, PageRequest, Store, StoredJob } from '@flotilla/core';
import { type ExplainView, FlotillaError, isId, isTerminal, type JobView } from '@flotilla/protocol';
import type { Principal } from '../accounts/principal.ts';
import type { Detached } from '../detached/detached.ts';
import { readLane } from '../detached/lane.ts';
import { type OpenJobs, explainJob } from '../dispatch/open-jobs.ts';
import type { Places } from '../dispatch/places.ts';
import type { FleetNode } from '../fleet/node.ts';
import { withResult } from './detached.ts';
import { iso, isoOrNull } from './iso.ts';
import { knownId, notFound, pageRequest } from './paging.ts';
import type { Results } from './results.ts';
import { type Handlers, present } from './routing.ts';

/** A replica that does not answer is back by then, or is taken for dead soon, and its jobs with it. */
const ASK_AGAIN_MS = 1000;

type JobRoutes = 'listJobs' | 'showJob' | 'jobResult' | 'explainJob' | 'cancelJob' | 'deleteJob';

export interface JobRouteDeps {
  open: OpenJobs;
  store: Pick<Store, 'listJobs' | 'findJob' | 'findDetached' | 'deleteBodies'>;
  /** Resolves when what has ended by now has its row. */
  recorded: () => Promise<unknown>;
  results: Results;
  detached: Pick<Detached, 'cancel'>;
  places: Pick<Places, 'tiers'>;
  /** Nodes and providers. */
  everywhere: () => FleetNode[];
}

/**
 * Open attached jobs are in memory, ended ones in the store; where both know one, memory is newer. Without admin a key
 * sees what it created; another's job does not exist for it.
 */
export function jobRoutes({
  open,
  store,
  recorded,
  results,
  detached,
  places,
  everywhere,
}: JobRouteDeps): Pick<Handlers, JobRoutes> {
  return {
    async listJobs({ query, principal }) {
      const { limit, after, ...rest } = query;
      const filter: JobFilter = { ...present(rest), ...(!principal.admin && { key: principal.key.id }) };
      const page = await list(filter, pageRequest({ limit, after }, 'job'));
      return { ...page, data: page.data.map((job) => shown(job, principal)) };
    },
    async showJob({ params: { id }, principal, reply }) {
      const job = shown(await find(id, principal), principal);
      if (job.attached) return job;
      const { result, erase_at } = await results.load(id, reply.raw);
      const told = (isTerminal(job.state) ? result : null) ?? 'null';
      const whole = { ...job, bodies_kept_until: isoOrNull(erase_at) };
      void reply
        .type('application/json; charset=utf-8')
        .send(withResult(whole, told === 'null' || results.isJson(job, told) ? told : JSON.stringify(told)));
      return whole;
    },
    async jobResult({ params: { id }, principal, reply }) {
      const job = await find(id, principal);
      const result = job.attached ? null : (await results.load(id, reply.raw)).result;
      if (result === null) throw noResult(job);
      void reply
        .type(results.isJson(job, result) ? 'application/json; charset=utf-8' : 'text/plain; charset=utf-8')
        .send(Buffer.from(result));
    },
    async explainJob({ params: { id }, principal }) {
      const job = await find(id, principal);
      const open_elsewhere = job.attached && !isTerminal(job.state);
      const explanation =
        open.explain(id) ??
        (open_elsewhere ? await open.explainElsewhere(id) : undefined) ??
        (await explainStored(job));
      return explained(explanation, principal);
    },
    async deleteJob({ params: { id }, principal }) {
      const job = await find(id, principal);
      if (job.attached) {
        throw new FlotillaError(
          'conflict',
          'Nothing of an attached request is stored, so there is nothing to erase.',
        );
      }
      if (!isTerminal(job.state)) await detached.cancel(id, `${byWhom(job, principal)}, to be erased.`);
      await store.deleteBodies(id);
    },
    async cancelJob({ params: { id }, principal }) {
      const job = await find(id, principal);
      const message = `${byWhom(job, principal)}.`;
      if (job.state === 'cancelled') {
        // Said again because the answer was lost, perhaps: the node may not have heard either.
        if (!job.attached) await detached.cancel(id, message);
        return shown(job, principal);
      }
      if (isTerminal(job.state))
        throw new FlotillaError('conflict', `The job has ended already: it ${job.state}.`);
      if (!job.attached) {
        await detached.cancel(id, message);
        return shown(await find(id, principal), principal);
      }
      const outcome = await open.cancel(id, message);
      if (outcome === 'ended') throw new FlotillaError('conflict', 'The job has just ended.');
      if (outcome === 'unknown') {
        throw new FlotillaError(
          'unavailable',
          'The replica that holds the job does not answer now; try again, or wait for the job’s own deadline.',
          { retry_after_ms: ASK_AGAIN_MS },
        );
      }
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
    return findJob({ open, store, recorded }, id, principal);
  }

  async function explainStored(job: JobView): Promise<ExplainView> {
    const state = job.attached || isTerminal(job.state) ? undefined : await store.findDetached(job.id);
    const lane = state === undefined ? undefined : readLane(state.lane);
    if (state === undefined || lane === undefined) return unexplained(job);
    const placement = {
      ...lane,
      avoid: new Set(lane.avoid),
      refused_by: NOBODY,
      affinity: null,
      fenced: true as const,
    };
    const all = everywhere();
    const holder = all.find(({ id }) => id === state.node) ?? null;
    return explainJob(places.tiers(lane.model), all, { id: job.id, state: state.state, placement, holder });
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

const NOBODY: ReadonlySet<string> = new Set();

/**
 * The job as it is, a detached one with what is under way.
 * @throws FlotillaError `not_found`, also for what another key created
 */
export async function findJob(
  { open, store, recorded }: Pick<JobRouteDeps, 'open' | 'store' | 'recorded'>,
  id: string,
  principal: Principal,
): Promise<JobView> {
  const live = open.find(knownId('job', id, 'job'));
  let stored = live === undefined ? await store.findJob(id) : undefined;
  if (live === undefined && stored === undefined) {
    // It may have ended just now: nobody waits for the row of what did not succeed.
    await recorded();
    stored = await store.findJob(id);
  }
  const job = live ?? (stored === undefined ? undefined : jobView(stored));
  if (job === undefined || (!principal.admin && job.key !== principal.key.id)) throw notFound('job', id);
  const state = job.attached ? undefined : await store.findDetached(id);
  return state === undefined ? job : withState(job, state);
}

/** An attempt under way has no story in the store yet. */
function withState(job: JobView, state: DetachedState): JobView {
  const { priority, metadata, attempt, node, offered_at, started_at, deadline_at } = state;
  const open =
    isTerminal(state.state) || node === null
      ? []
      : [
          {
            attempt,
            node: isId('provider', node) ? null : node,
            provider: isId('provider', node) ? node : null,
            backend: null,
            outcome: 'open',
            code: null,
            message: null,
            offered_at: iso(offered_at ?? 0),
            started_at: isoOrNull(started_at),
            ended_at: null,
          },
        ];
  const ended = job.attempts.filter((one) => open.length === 0 || one.attempt !== attempt);
  return {
    ...job,
    // Read later than the rest, which an end in between must not contradict.
    state: isTerminal(job.state) ? job.state : isTerminal(state.state) ? job.state : state.state,
    attempts: isTerminal(job.state) ? job.attempts : [...ended, ...open],
    priority,
    metadata,
    deadline_at: isoOrNull(deadline_at),
  };
}

function byWhom(job: JobView, principal: Principal): string {
  return job.key === principal.key.id ? 'Cancelled by its own key' : 'Cancelled by an operator';
}

const ENDED: Partial<Record<JobView['state'], string>> = {
  failed: 'failed',
  timed_out: 'ran out of time',
  cancelled: 'was cancelled',
};

function noResult(job: JobView): FlotillaError {
  if (job.attached) {
    return new FlotillaError(
      'not_found',
      'Its client had the answer; nothing of an attached request is stored.',
    );
  }
  if (!isTerminal(job.state)) {
    return new FlotillaError(
      'conflict',
      `The job is ${job.state}; GET /api/v1/jobs/${job.id}/events tells when it has ended.`,
    );
  }
  if (job.state !== 'succeeded') {
    return new FlotillaError(
      'not_found',
      `There is no result: the job ${ENDED[job.state]}. GET /api/v1/jobs/${job.id} says why.`,
    );
  }
  return new FlotillaError(
    'not_found',
    'The result has been erased: its retention is over, or somebody asked for it.',
  );
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

/** Of one that has ended, or that the replica of its client alone can explain. */
function unexplained({ id, state, attached }: JobView): ExplainView {
  const open = attached ? `is ${state} at another replica: only that one can say why` : `is ${state}`;
  return { id, state, summary: `It ${isTerminal(state) ? `has ended: ${state}` : open}.`, nodes: [] };
}

/** Which node served is for those who may read nodes. */
export function shown(job: JobView, principal: Principal): JobView {
  if (principal.has('nodes:read')) return job;
  return {
    ...job,
    attempts: job.attempts.map((attempt) => ({ ...attempt, node: null, provider: null, backend: null })),
  };
}

function explained(explanation: ExplainView, principal: Principal): ExplainView {
  if (principal.has('nodes:read')) return explanation;
  const nodes = explanation.nodes.map((node, index) => ({ ...node, node: '', name: `node ${index + 1}` }));
  return { ...explanation, nodes };
}
