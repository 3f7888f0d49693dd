import type { DetachedState, HeldJob, InventoriedJob, KeptJob } from '@flotilla/core';
import { encode } from '../json.ts';
import { NOW_MS, prepared, type Sql } from '../sql.ts';

const COLUMNS = `j.id, j.attempt, j.node, j.epoch, j.replica, j.state, j.lane, j.order_key, j.priority, j.on_node_loss, j.failures,
  j.max_attempts`;

const held = prepared(
  'held-jobs',
  `select ${COLUMNS} from jobs j
   where j.node = $1 and j.state in ('leased', 'running') and not j.attached order by j.id`,
);

/** One index probe a node: `jobs_by_node` is walked from one node to the next. */
const nodes = prepared(
  'held-nodes',
  `with recursive step as (
     (select j.node from jobs j where j.node is not null and j.state in ('leased', 'running')
      order by j.node, j.id limit 1)
     union all
     select (select j.node from jobs j
       where j.node is not null and j.state in ('leased', 'running') and j.node > step.node
       order by j.node, j.id limit 1)
     from step where step.node is not null)
   select node from step where node is not null`,
);

/**
 * Never to an older epoch: of two connections of one node, the later one keeps. What the node had finished when it was
 * taken for lost is its own again while the job waits after that very attempt: by that nobody else can have it.
 */
const keep = prepared(
  'keep-jobs',
  `with now as materialized (select ${NOW_MS} as ms),
   input as materialized (
     select * from jsonb_to_recordset($1::jsonb) as r (id text, attempt bigint, finished boolean, wants_request boolean)),
   own as materialized (
     select j.id, j.state = 'queued' as late, input.finished, a.offered_at, a.started_at, input.wants_request
     from jobs j join input on input.id = j.id and input.attempt = j.attempt
     left join attempts a on a.job = j.id and a.attempt = j.attempt
     where not j.attached and (
       (j.node = $2 and j.state in ('leased', 'running') and j.epoch <= $3)
       or (input.finished and j.state = 'queued' and a.node = $2
         and j.accepted_attempt is distinct from j.attempt))
     order by j.id for no key update of j),
   kept as (
     update jobs j
     set epoch = $3, replica = $4, node = $2, not_before = null,
       state = case when own.late then 'running' else j.state end,
       offered_at = case when own.late then own.offered_at else j.offered_at end,
       started_at = case when own.late then coalesce(own.started_at, now.ms) else j.started_at end,
       -- Its work is over: it only has to be handed in.
       deadline_at = case when own.late or own.finished then now.ms + j.run_timeout_ms else j.deadline_at end
     from own, now where j.id = own.id
     returning j.id, j.attempt, j.node, j.epoch, j.state, j.kind, j.lane, j.key, j.model, j.operation, j.request_id,
       j.order_key, j.priority, j.failures, j.max_attempts, j.on_node_loss, j.run_timeout_ms, j.traceparent, j.created_at,
       own.wants_request)
   select kept.id, attempt, node, epoch, state, kind, lane, key, model, operation, request_id, order_key, priority, failures,
     max_attempts, on_node_loss, run_timeout_ms, traceparent, created_at,
     case when wants_request then body.request end as request, coalesce(octet_length(body.request), 0) as request_bytes
   from kept left join job_bodies body on body.job = kept.id`,
);

const find = prepared(
  'find-detached',
  `select id, state, lane, order_key, priority, metadata, attempt, failures, max_attempts, node, epoch,
     offered_at, started_at, not_before, deadline_at, traceparent
   from jobs where id = $1 and not attached`,
);

export function heldJobs(sql: Sql, node: string): Promise<HeldJob[]> {
  return sql.query<HeldJob>(held, [node]);
}

export async function heldNodes(sql: Sql): Promise<string[]> {
  return (await sql.query<{ node: string }>(nodes)).map(({ node }) => node);
}

export async function keepJobs(
  sql: Sql,
  node: string,
  epoch: number,
  replica: string,
  jobs: InventoriedJob[],
): Promise<KeptJob[]> {
  if (jobs.length === 0) return [];
  return sql.query<KeptJob>(keep, [encode(jobs), node, epoch, replica]);
}

export async function findDetached(sql: Sql, id: string): Promise<DetachedState | undefined> {
  const [row] = await sql.query<DetachedState>(find, [id]);
  return row;
}
