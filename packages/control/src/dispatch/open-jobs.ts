import {
  type PlacementRequest,
  REFUSAL_TEXT,
  type Refusal,
  type Tier,
  refusal,
  requestIn,
} from '@flotilla/core';
import type { ExplainView, JobState, JobView } from '@flotilla/protocol';
import type { FleetNode, ModelSpot } from '../fleet/node.ts';
import type { ActiveJob } from './active-job.ts';
import type { Dispatcher } from './dispatcher.ts';

/** Open attached jobs of this replica, as the jobs API shows them; finished ones are the store's to tell. */
export interface OpenJobs {
  list(): JobView[];
  find(id: string): JobView | undefined;
  explain(id: string): ExplainView | undefined;
  /** Of one at another replica, by that one; undefined: none has it, or it does not say. */
  explainElsewhere(id: string): Promise<ExplainView | undefined>;
  /** `unknown`: not every other replica has said whether the job is there. */
  cancel(id: string, message: string): Promise<'cancelled' | 'ended' | 'unknown'>;
}

/** Asks each other replica about a job that is not here; undefined: it does not say. */
export interface OtherReplicas {
  /** @returns whether it was there, and is ended */
  cancel(job: string, message: string): Promise<boolean | undefined>[];
  /** @returns null: it is not there */
  explain(job: string): Promise<ExplainView | null | undefined>[];
}

export function openJobs(
  dispatcher: Dispatcher,
  everywhere: () => Iterable<FleetNode>,
  others: OtherReplicas,
): OpenJobs {
  const { jobs } = dispatcher;
  return {
    list: () => [...jobs.values()].reverse().map((job) => jobView(dispatcher, job)),
    find(id) {
      const job = jobs.get(id);
      return job === undefined ? undefined : jobView(dispatcher, job);
    },
    explain(id) {
      const job = jobs.get(id);
      if (job === undefined) return undefined;
      const { kernel, placement, current } = job;
      return explainJob(dispatcher.deps.places.tiers(job.request.model), everywhere(), {
        id,
        state: kernel.state,
        placement,
        holder: current?.node ?? null,
      });
    },
    async explainElsewhere(id) {
      const answers = await Promise.all(others.explain(id));
      return answers.find((answer) => answer !== null && answer !== undefined) ?? undefined;
    },
    async cancel(id, message) {
      const job = jobs.get(id);
      if (job !== undefined) {
        dispatcher.cancel(job, message);
        return 'cancelled';
      }
      const answers = await Promise.all(others.cancel(id, message));
      if (answers.includes(true)) return 'cancelled';
      return answers.includes(undefined) ? 'unknown' : 'ended';
    },
  };
}

function jobView({ lanes }: Dispatcher, job: ActiveJob): JobView {
  const { request, kernel } = job;
  const open = job.current === null ? [] : [job.current.story];
  return {
    id: job.id,
    kind: 'inference',
    attached: true,
    state: kernel.state,
    model: request.model,
    operation: request.operation,
    key: request.key,
    request_id: request.request_id,
    position: job.queued ? lanes.position(job) : null,
    attempts: [...job.stories, ...open].map(
      ({ epoch: _epoch, offered_at, started_at, ended_at, ...story }) => ({
        ...story,
        offered_at: iso(offered_at),
        started_at: started_at === null ? null : iso(started_at),
        ended_at: ended_at === null ? null : iso(ended_at),
      }),
    ),
    error: null,
    created_at: iso(job.created_at),
    finished_at: null,
  };
}

interface Explained {
  id: string;
  state: JobState;
  placement: PlacementRequest;
  /** The node that has it; null: none, or one that is not known here. */
  holder: FleetNode | null;
}

/** Every node and provider with its verdict: the placement filter itself, asked again. */
export function explainJob(
  tiers: readonly Tier<ModelSpot>[],
  everywhere: Iterable<FleetNode>,
  { id, state, placement, holder }: Explained,
): ExplainView {
  const { model } = placement;
  const nodes = [...everywhere].flatMap((node) => {
    const own = tiers.flatMap((tier) => tier.spots.of(node.id).map((spot) => ({ spot, tier })));
    // That a provider which no route names has not the model is no news.
    if (node.is_provider && own.length === 0) return [];
    const refusals = own.map(({ spot, tier }) => {
      const asked = requestIn(placement, tier);
      return asked === null ? 'labels' : refusal(asked, spot);
    });
    const reasons =
      own.length === 0
        ? ['it does not have the model']
        : refusals.flatMap((code) => (code === null ? [] : [reasonOf(code, node)]));
    if (placement.avoid.has(node.id)) reasons.push('it has failed this job');
    const verdict =
      holder === node ? 'has it' : refusals.includes(null) ? 'could take it' : (refusals[0] ?? 'no_model');
    return [{ node: node.id, name: node.record.name, verdict, reasons }];
  });
  const able = nodes.filter((node) => node.verdict === 'could take it').length;
  const summary =
    state === 'queued'
      ? `It waits for ${model}; ${able} of ${nodes.length} nodes could take it now.`
      : `It is ${state} on ${holder?.record.name ?? 'a node'}.`;
  return { id, state, summary, nodes };
}

function reasonOf(code: Refusal, { journal }: FleetNode): string {
  const text = REFUSAL_TEXT[code];
  return code === 'journal_down' && journal.reason !== undefined ? `${text}: ${journal.reason}` : text;
}

function iso(wall_ms: number): string {
  return new Date(wall_ms).toISOString();
}
