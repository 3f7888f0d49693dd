import type { ClaimedJob, ClaimRequest } from '@flotilla/core';
import { bytewise, inTurn, type JobRow, type Tables } from './tables.ts';

/** Of a lane's free slots those up to `upto` are this node's, after those of the nodes before it. */
interface Want {
  node: string;
  epoch: number;
  upto: number;
  from: number;
}

export function claimJobs(
  tables: Tables,
  { replica, lanes, limit, bytes_most = Infinity }: ClaimRequest,
): ClaimedJob[] {
  const wants = wantsOf(lanes.filter(({ free }) => free > 0));
  const heads = [...wants].flatMap(([lane, want]) =>
    tables.jobs
      .ready(lane)
      .filter(({ order_key }) => order_key >= Math.min(...want.map(({ from }) => from)))
      .slice(0, Math.min(want.at(-1)!.upto, limit)),
  );
  const places = new Map<string, number>();
  const given: JobRow[] = [];
  let bytes = 0;
  for (const job of heads.sort(inTurn).slice(0, Math.max(0, limit))) {
    bytes += Buffer.byteLength(tables.bodies.get(job.id)?.request ?? '');
    if (given.length > 0 && bytes > bytes_most) break;
    const place = (places.get(job.lane!) ?? 0) + 1;
    places.set(job.lane!, place);
    const { node, epoch } = wants.get(job.lane!)!.find(({ upto }) => upto >= place)!;
    given.push({
      ...job,
      state: 'leased',
      attempt: job.attempt + 1,
      node,
      epoch,
      replica,
      offered_at: tables.now_ms(),
      started_at: null,
    });
  }
  for (const job of given) tables.jobs.put(job);
  return given.map((job) => claimed(tables, job));
}

function wantsOf(lanes: ClaimRequest['lanes']): Map<string, Want[]> {
  const wants = new Map<string, Want[]>();
  for (const { lane, node, epoch, free, from_order_key: from = -Infinity } of lanes.toSorted((a, b) =>
    bytewise(a.node, b.node),
  )) {
    const want = wants.get(lane) ?? [];
    want.push({ node, epoch, upto: (want.at(-1)?.upto ?? 0) + free, from });
    wants.set(lane, want);
  }
  return wants;
}

export function claimed(tables: Tables, job: JobRow, with_request = true): ClaimedJob {
  const request = tables.bodies.get(job.id)?.request ?? null;
  return {
    id: job.id,
    attempt: job.attempt,
    node: job.node!,
    epoch: job.epoch!,
    kind: job.kind,
    lane: job.lane!,
    key: job.key,
    model: job.model,
    operation: job.operation,
    request_id: job.request_id,
    order_key: job.order_key,
    priority: job.priority!,
    failures: job.failures,
    max_attempts: job.max_attempts!,
    on_node_loss: job.on_node_loss!,
    run_timeout_ms: job.run_timeout_ms,
    traceparent: job.traceparent,
    created_at: job.created_at,
    request: with_request ? request : null,
    request_bytes: request === null ? 0 : Buffer.byteLength(request),
  };
}
