import type { DetachedState, HeldJob } from '@flotilla/core';
import { encode } from '../json.ts';
import { prepared, type Sql } from '../sql.ts';

const COLUMNS = 'j.id, j.attempt, j.node, j.epoch, j.state, j.on_node_loss, j.failures, j.max_attempts';

const held = prepared(
  'held-jobs',
  `select ${COLUMNS} from jobs j
   where j.node = $1 and j.state in ('leased', 'running') and not j.attached order by j.id`,
);

/** Never to an older epoch: of two connections of one node, the later one keeps. */
const keep = prepared(
  'keep-jobs',
  `with input as materialized (
     select * from jsonb_to_recordset($1::jsonb) as r (id text, attempt bigint)),
   own as materialized (
     select j.id from jobs j join input on input.id = j.id and input.attempt = j.attempt
     where j.node = $2 and j.state in ('leased', 'running') and not j.attached and j.epoch <= $3
     order by j.id for no key update of j)
   update jobs j set epoch = $3, replica = $4 from own where j.id = own.id
   returning ${COLUMNS}`,
);

const find = prepared(
  'find-detached',
  `select id, state, lane, order_key, priority, metadata, attempt, failures, max_attempts, node, epoch,
     started_at, not_before, deadline_at
   from jobs where id = $1 and not attached`,
);

export function heldJobs(sql: Sql, node: string): Promise<HeldJob[]> {
  return sql.query<HeldJob>(held, [node]);
}

export async function keepJobs(
  sql: Sql,
  node: string,
  epoch: number,
  replica: string,
  jobs: { id: string; attempt: number }[],
): Promise<HeldJob[]> {
  if (jobs.length === 0) return [];
  return sql.query<HeldJob>(keep, [encode(jobs), node, epoch, replica]);
}

export async function findDetached(sql: Sql, id: string): Promise<DetachedState | undefined> {
  const [row] = await sql.query<DetachedState>(find, [id]);
  return row;
}
