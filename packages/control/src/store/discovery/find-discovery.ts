import type { DiscoveryRecord } from '@flotilla/core';
import { prepared, type Sql } from '../sql.ts';
import { COLUMNS } from './row.ts';

const find = prepared('find-discovery', `select ${COLUMNS} from model_discoveries d where d.id = $1`);

export async function findDiscovery(sql: Sql, id: string): Promise<DiscoveryRecord | undefined> {
  return (await sql.query<DiscoveryRecord>(find, [id]))[0];
}
