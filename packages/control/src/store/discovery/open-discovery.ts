import type { DiscoveryRecord, NewDiscovery } from '@flotilla/core';
import { NOW_MS, prepared, type Sql } from '../sql.ts';
import { COLUMNS, IS_OPEN } from './row.ts';

/** One whose time is over must not be shared, nor stand in the way of the next. */
const expire = prepared(
  'open-discovery-expire',
  `update model_discoveries set state = 'timed_out', reason = 'timed_out', finished_at = ${NOW_MS}
   where node = $1 and backend = $2 and ${IS_OPEN} and expires_at <= (select ${NOW_MS})`,
);
const insert = prepared(
  'open-discovery-insert',
  `with now as materialized (select ${NOW_MS} as ms)
   insert into model_discoveries (id, node, backend, state, stage, reason, created_at, expires_at, finished_at)
   select $1, $2, $3, case when $5::text is null then 'pending' else 'failed' end, 'pending', $5::text, now.ms,
     now.ms + $4::bigint, case when $5::text is null then null else now.ms end
   from now
   on conflict (node, backend) where ${IS_OPEN} do nothing
   returning id`,
);
const find = prepared('open-discovery-find', `select ${COLUMNS} from model_discoveries d where d.id = $1`);
const inFlight = prepared(
  'open-discovery-in-flight',
  `select ${COLUMNS} from model_discoveries d where d.node = $1 and d.backend = $2 and d.${IS_OPEN}`,
);
/** Who asks again and again is told the same: refusals cost no check, and would fill the table. */
const justRefused = prepared(
  'open-discovery-just-refused',
  `select * from (
     select ${COLUMNS} from model_discoveries d where d.node = $1 and d.backend = $2 order by d.id desc limit 1) d
   where d.reason = $3 and d.stage = 'pending' and d.finished_at > (select ${NOW_MS}) - 1000`,
);

/** One that is in flight may end between the two statements; then the place is free. */
const TRIES = 3;

export function openDiscovery(sql: Sql, request: NewDiscovery): Promise<DiscoveryRecord> {
  const { id, node, timeout_ms, refused } = request;
  const backend = request.backend ?? '';
  return sql.transaction(async (tx) => {
    const first = async (statement: typeof find, params: string[]) =>
      (await tx.query<DiscoveryRecord>(statement, params))[0];
    if (refused !== null) {
      const same = await first(justRefused, [node, backend, refused]);
      if (same !== undefined) return same;
    }
    await tx.query(expire, [node, backend]);
    for (let tries = 0; tries < TRIES; tries++) {
      const made = await tx.query(insert, [id, node, backend, timeout_ms, refused]);
      const found = made.length > 0 ? await first(find, [id]) : await first(inFlight, [node, backend]);
      if (found !== undefined) return found;
    }
    throw new Error('Requests for the models of one backend end faster than they can be joined.');
  });
}
