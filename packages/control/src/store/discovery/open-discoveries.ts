import type { DiscoveryRecord } from '@flotilla/core';
import { NOW_MS, prepared, type Sql } from '../sql.ts';
import { COLUMNS, IS_OPEN } from './row.ts';

/** What is locked is just being ended. */
const expire = prepared(
  'expire-discoveries',
  `with now as materialized (select ${NOW_MS} as ms),
   late as materialized (
     select id from model_discoveries where ${IS_OPEN} and expires_at <= (select ms from now)
     order by expires_at limit $1 for no key update skip locked)
   update model_discoveries d set state = 'timed_out', reason = 'timed_out', finished_at = now.ms
   from late, now where d.id = late.id`,
);
const open = prepared(
  'open-discoveries',
  `select ${COLUMNS} from model_discoveries d where d.${IS_OPEN} order by d.expires_at limit $1`,
);

export async function openDiscoveries(sql: Sql, limit: number): Promise<DiscoveryRecord[]> {
  await sql.query(expire, [limit]);
  return sql.query<DiscoveryRecord>(open, [limit]);
}
