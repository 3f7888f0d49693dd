import { NOW_MS, type Sql } from '../sql.ts';

/**
 * What changes in a store that goes on from a backup. The source went on too: its nodes may hold results of attempts and
 * epochs that the backup has never heard of.
 *
 * - Every epoch is raised by more than any node can have used since, so that no fence from the other life fits.
 * - Detached jobs under a lease go back to the queue, their attempt told as lost. No node gets one before the leases of
 *   the source have ended, by which time its nodes have stopped (promise P4).
 *
 * - The installation has another name: on a bus that both use, the two do not take each other for replicas.
 * - What replicas held of shared limits is counted anew.
 *
 * Attached requests that were open belong to a replica that is no more: the first start ends them.
 */
const EPOCHS_SKIPPED = 1_000_000;

export async function takeOver(tx: Sql, lease_ttl_ms: number): Promise<{ requeued: number }> {
  await tx.query(`update configuration set installation = md5(random()::text || clock_timestamp()::text)`);
  await tx.query('delete from allowances');
  await tx.query(`update node_liveness set epoch = epoch + ${EPOCHS_SKIPPED}, replica = null`);
  const [row] = await tx.query<{ count: number }>(
    `with now as materialized (select ${NOW_MS} as ms),
     held as materialized (
       select id, attempt, node, epoch, offered_at, started_at from jobs
       where not attached and finished_at is null and state in ('leased', 'running')),
     story as (
       insert into attempts (job, attempt, node, epoch, outcome, code, message, offered_at, started_at, ended_at)
       select id, attempt, node, epoch, 'node_lost', 'node_lost',
         'The store was restored from a backup while this attempt was under way.', offered_at, started_at, now.ms
       from held, now where node is not null and epoch is not null
       on conflict do nothing),
     moved as (
       update jobs j
       set state = 'queued', node = null, epoch = null, offered_at = null, started_at = null,
         deadline_at = case when held.started_at is null then j.deadline_at else now.ms + j.queue_timeout_ms end,
         not_before = now.ms + $1::bigint
       from held, now where j.id = held.id returning j.id)
     select count(*) as count from moved`,
    [lease_ttl_ms],
  );
  return { requeued: row?.count ?? 0 };
}
