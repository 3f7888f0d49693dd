import type { ClaimedJob, ClaimRequest } from '@flotilla/core';
import { encode } from '../json.ts';
import { NOW_MS, prepared, type Sql } from '../sql.ts';

/**
 * One look-up in `jobs_ready` a lane, no deeper than its free slots; of the heads the smallest order keys, and each to
 * the node whose slots its place in the lane falls into. `skip locked`: replicas that claim at once take different jobs.
 * A planner cannot know how few a claim takes: of a long line it expects a tenth, and would read both tables whole to
 * join them with those (1 s with 80,000 jobs in one lane). So the line has a length that it knows, jobs are looked up by
 * an array of ids, which it takes for short, and their bodies one by one.
 *
 * What was claimed lately is still in the index, dead: a line that is read from its beginning is walked past all of it,
 * and for as long as somebody holds a transaction open it only grows. `from_order_key` is where to begin instead.
 */
/** More than a claim asks for of a lane; only what is taken out of the line is locked. */
const HEADS_MOST = 1000;
const FIRST_ORDER_KEY = Number.MIN_SAFE_INTEGER;
const statement = prepared(
  'claim-jobs',
  `with want as materialized (
     select lane, node, epoch, sum(free) over (partition by lane order by node) as upto,
       coalesce(from_order_key, ${FIRST_ORDER_KEY}) as from_order_key
     from json_to_recordset($1::json) as r (lane text, node text, epoch bigint, free bigint, from_order_key bigint)),
   depth as materialized (
     select lane, least(max(upto), $3::bigint) as free, min(from_order_key) as from_order_key from want group by lane),
   head as materialized (
     select depth.lane, ready.id, ready.order_key, body.request, coalesce(octet_length(body.request), 0) as request_bytes
     from depth cross join lateral (
       select id, order_key from (
         select id, order_key from jobs
         where lane = depth.lane and order_key >= depth.from_order_key
           and state = 'queued' and not attached and not_before is null
         order by order_key, id limit ${HEADS_MOST}
         for update skip locked) line
       limit depth.free) ready
     left join lateral (select request from job_bodies where job = ready.id limit 1) body on true),
   placed as (
     select *, row_number() over (partition by lane order by order_key, id) as place,
       row_number() over in_turn as overall, sum(request_bytes) over in_turn as upto_bytes
     from head window in_turn as (order by order_key, id rows unbounded preceding)),
   given as (
     select placed.id, placed.request, placed.request_bytes, taker.node, taker.epoch
     from placed cross join lateral (
       select node, epoch from want
       where want.lane = placed.lane and want.upto >= placed.place order by want.upto limit 1) taker
     where placed.overall <= $3::bigint and (placed.overall = 1 or placed.upto_bytes <= $4::bigint)),
   leased as (
     update jobs j
     set state = 'leased', attempt = j.attempt + 1, node = given.node, epoch = given.epoch, replica = $2,
       offered_at = ${NOW_MS}, started_at = null
     from given where j.id = any (array(select id from given)) and j.id = given.id
     returning j.id, j.attempt, j.node, j.epoch, j.kind, j.lane, j.key, j.model, j.operation, j.request_id,
       j.order_key, j.priority, j.failures, j.max_attempts, j.on_node_loss, j.run_timeout_ms, j.traceparent, j.created_at,
       given.request, given.request_bytes)
   select * from leased order by order_key, id`,
);

export async function claimJobs(
  sql: Sql,
  { replica, lanes, limit, bytes_most = Number.MAX_SAFE_INTEGER }: ClaimRequest,
): Promise<ClaimedJob[]> {
  const open = lanes.filter(({ free }) => free > 0);
  if (open.length === 0 || limit <= 0) return [];
  return sql.query<ClaimedJob>(statement, [encode(open), replica, limit, bytes_most]);
}
