import type { Page, PageRequest, TokenRecord } from '@flotilla/core';
import { administer } from './config-version.ts';
import { encode } from './json.ts';
import { pageOf } from './paging.ts';
import { type Param, type Sql } from './sql.ts';

const COLUMNS = 'id, hash, labels, allowed_models, max_uses, uses, created_at, expires_at';

export async function insertToken(sql: Sql, token: TokenRecord): Promise<void> {
  await administer(
    sql,
    `insert into enrolment_tokens (${COLUMNS})
     select ${COLUMNS} from jsonb_to_record($1::jsonb) as r (
       id text, hash text, labels jsonb, allowed_models jsonb, max_uses bigint, uses bigint,
       created_at bigint, expires_at bigint)
     returning id`,
    [encode(token)],
  );
}

/** Those that still enrol a node. */
export async function listTokens(sql: Sql, page: PageRequest, now: number): Promise<Page<TokenRecord>> {
  const params: Param[] = [now, page.limit + 1];
  if (page.after !== undefined) params.push(page.after);
  const rows = await sql.query<TokenRecord>(
    `select ${COLUMNS} from enrolment_tokens
     where expires_at > $1 and uses < max_uses ${page.after === undefined ? '' : 'and id < $3'}
     order by id desc limit $2`,
    params,
  );
  return pageOf(rows, page.limit, (token) => token.id);
}

export async function deleteToken(sql: Sql, id: string): Promise<boolean> {
  const gone = await administer(sql, 'delete from enrolment_tokens where id = $1 returning id', [id]);
  return gone.length > 0;
}
