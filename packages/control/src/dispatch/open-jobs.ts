import { REFUSAL_TEXT, refusal } from '@flotilla/core';
import type { ExplainView, JobView } from '@flotilla/protocol';
import type { ActiveJob } from './active-job.ts';
import type { Dispatcher } from './dispatcher.ts';

/** Open attached jobs of this replica, as the jobs API shows them; finished ones are the store's to tell. */
export interface OpenJobs {
  list(): JobView[];
  find(id: string): JobView | undefined;
  explain(id: string): ExplainView | undefined;
  /** False: no such open job here. */
  cancel(id: string, message: string): boolean;
}

export function openJobs(dispatcher: Dispatcher): OpenJobs {
  const { jobs } = dispatcher;
  return {
    list: () => [...jobs.values()].reverse().map((job) => jobView(dispatcher, job)),
    find(id) {
      const job = jobs.get(id);
      return job === undefined ? undefined : jobView(dispatcher, job);
    },
    explain(id) {
      const job = jobs.get(id);
      return job === undefined ? undefined : explain(dispatcher, job);
    },
    cancel(id, message) {
      const job = jobs.get(id);
      if (job !== undefined) dispatcher.cancel(job, message);
      return job !== undefined;
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

/** Every node with its verdict: the placement filter itself, asked again. */
function explain({ deps }: Dispatcher, job: ActiveJob): ExplainView {
  const { roster } = deps;
  const spots = roster.spots(job.request.model);
  const nodes = [...roster.all()].map((node) => {
    const own = spots.filter((spot) => spot.node === node);
    const refusals = own.map((spot) => refusal(job.placement, spot));
    const reasons =
      own.length === 0
        ? ['it does not have the model']
        : refusals.flatMap((code) => (code === null ? [] : [REFUSAL_TEXT[code]]));
    if (job.placement.avoid.has(node.id)) reasons.push('it has failed this job');
    const holds = job.current?.node === node;
    const verdict = holds
      ? 'has it'
      : refusals.includes(null)
        ? 'could take it'
        : (refusals[0] ?? 'no_model');
    return { node: node.id, name: node.record.name, verdict, reasons };
  });
  const { state } = job.kernel;
  const able = nodes.filter((node) => node.verdict === 'could take it').length;
  const summary =
    state === 'queued'
      ? `It waits for ${job.request.model}; ${able} of ${nodes.length} nodes could take it now.`
      : `It is ${state} on ${job.current?.node.record.name ?? 'a node'}.`;
  return { id: job.id, state, summary, nodes };
}

function iso(wall_ms: number): string {
  return new Date(wall_ms).toISOString();
}
