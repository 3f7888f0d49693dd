import { AsyncLocalStorage } from 'node:async_hooks';
import type { Act, AuditFilter, AuditRecord, Log, Page, PageRequest } from '@flotilla/core';
import { FlotillaError, makeId } from '@flotilla/protocol';
import { encode } from './json.ts';
import { Conditions, pageOf } from './paging.ts';
import { type Param, prepared, type Sql } from './sql.ts';

/**
 * The act of administration that is under way. What it writes to the configuration is some operation of the store, deep
 * in a call; it takes the act from here, so that no operation has to be told who asked, and none can forget it.
 *
 *     under way ──an operation changes something──▶ written (in that operation's transaction)
 *         ├── ended without a change of the store ──▶ written (before it is answered)
 *         └── refused ──▶ written with the refusal, where the act keeps those
 *
 * The row has one id from the start and is inserted once, whatever comes twice: an act that is written and then refused
 * was done; one whose transaction was rolled back was not.
 */
interface Open {
  act: Act;
  written: boolean;
}
const open = new AsyncLocalStorage<Open>();

const COLUMNS = 'id, at, action, outcome, key, key_name, address, target, change, request_id';

/** Inserts the row that is `place`; `changed` says what the act's target is where it was not known before. */
const insertInto = (place: string, changed = '') =>
  `insert into audit (${COLUMNS})
   select r.id, r.at, r.action, r.outcome, r.key, r.key_name, r.address,
     ${changed === '' ? 'r.target' : `coalesce(r.target, (select to_jsonb(c)->>'id' from ${changed} c limit 1))`},
     r.change, r.request_id
   from jsonb_to_record(${place}::jsonb) as r (
     id text, at bigint, action text, outcome text, key text, key_name text, address text, target text, change jsonb,
     request_id text)
   ${changed === '' ? '' : `where exists (select from ${changed})`}
   on conflict (id) do nothing`;

const record = prepared('record-act', insertInto('$1'));
const sweep = prepared(
  'sweep-audit',
  `with old as materialized (
     select id from audit where id < $1 order by id limit $2 for update skip locked),
   gone as (delete from audit where id in (select id from old))
   select count(*) as count from old`,
);

export function runAct<T>(sql: Sql, log: Log, act: Act, run: () => Promise<T>): Promise<T> {
  const own: Open = { act, written: false };
  return open.run(own, async () => {
    let result: T;
    try {
      result = await run();
    } catch (error) {
      // Only a refusal: where the store itself failed, one more statement would fail as well.
      if (act.keep_refusals && error instanceof FlotillaError) {
        await write(sql, { ...act.record, outcome: error.code }).catch((failure: unknown) =>
          log.error({ error: failure, action: act.record.action }, 'A refused act could not be recorded.'),
        );
      }
      throw error;
    }
    if (!own.written) await write(sql, act.record);
    return result;
  });
}

async function write(sql: Sql, row: AuditRecord): Promise<void> {
  await sql.query(record, [encode(row)]);
}

/** What is found out while the act is under way, and worth having in its row. */
export function noteInAct(facts: Record<string, unknown>): void {
  const own = open.getStore();
  if (own !== undefined) own.act = { ...own.act, record: withFacts(own.act.record, facts) };
}

function withFacts(row: AuditRecord, facts: Record<string, unknown>): AuditRecord {
  return { ...row, change: { ...row.change, ...facts } };
}

/** The part of a statement of administration that records the act it belongs to, if there is one. */
export interface ActPart {
  /** For the end of a `with` list; empty without an act. */
  text: string;
  params: Param[];
  /** Tells how many rows the statement changed. */
  done(rows: number): void;
}

/** @param place of the part's parameter in the statement */
export function actPart(changed: string, place: number): ActPart {
  const own = open.getStore();
  if (own === undefined) return { text: '', params: [], done: () => undefined };
  return {
    text: `, audited as (${insertInto(`$${place}`, changed)})`,
    params: [encode(own.act.record)],
    done(rows) {
      if (rows > 0) own.written = true;
    },
  };
}

export async function listAudit(
  sql: Sql,
  filter: AuditFilter,
  page: PageRequest,
): Promise<Page<AuditRecord>> {
  const conditions = new Conditions();
  conditions.when(filter.key, (key) => `key = ${key}`);
  conditions.when(filter.target, (target) => `target = ${target}`);
  conditions.when(filter.action, (action) => `action = ${action}`);
  if (filter.since !== undefined) conditions.when(firstIdOf(filter.since), (id) => `id >= ${id}`);
  if (filter.until !== undefined) conditions.when(firstIdOf(filter.until), (id) => `id < ${id}`);
  conditions.when(page.after, (after) => `id < ${after}`);
  const limit = conditions.param(page.limit + 1);
  const rows = await sql.query<AuditRecord>(
    `select ${COLUMNS} from audit ${conditions.where} order by id desc limit ${limit}`,
    conditions.params,
  );
  return pageOf(rows, page.limit, (row) => row.id);
}

/** @returns how many rows from before that time are gone */
export async function sweepAudit(sql: Sql, before: number, batch: number): Promise<number> {
  const [row] = await sql.query<{ count: number }>(sweep, [firstIdOf(before), batch]);
  return row?.count ?? 0;
}

/** The smallest id that a row of this time can have. */
function firstIdOf(wall_ms: number): string {
  return makeId('audit', Math.max(0, wall_ms), new Uint8Array(10));
}
