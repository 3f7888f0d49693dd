import {
  type Allowance,
  type BudgetCount,
  countFrom,
  type Draw,
  type Drawn,
  drawShare,
  type KeyLimits,
  leaveShare,
  newAllowance,
} from '@flotilla/core';
import { encode } from './json.ts';
import { NOW_MS, prepared, type Sql } from './sql.ts';

/**
 * Limits that replicas share: one row an allowance, with the share of each replica in it. A transaction of four
 * statements locks the rows, in order of key and kind, lets `core/src/draw.ts` decide, and writes what has changed. It
 * runs ahead of requests, for all keys of a replica at once. Rows that are not there yet are made between two of them:
 * made in one, it would hold some and wait for others that are before them, and two could wait for each other.
 */
const COLUMNS = 'key, kind, size, used, pledged, at, start, counted_at, stale, doubt, recall, shares';
const TYPES = `key text, kind text, size bigint, used double precision, pledged bigint, at bigint, start bigint,
  counted_at bigint, stale boolean, doubt boolean, recall bigint, shares jsonb`;

/** Rows of before there was a bound on what a server may tell can add up to more than JavaScript can hold. */
const MOST = Number.MAX_SAFE_INTEGER;

/** Held until the transaction ends: what ends this replica waits for it, and then finds all of its shares. */
const alive = prepared('alive-replica', 'select id from replicas where id = $1 for key share');
const limits = prepared(
  'limits-of-keys',
  `select id, requests_per_minute, tokens_per_minute, concurrency, token_budget
   from api_keys where id in (select jsonb_array_elements_text($1::jsonb))`,
);
/** The clock is read once the rows are locked: who came before has stamped them. */
const lock = prepared(
  'lock-allowances',
  `with locked as materialized (
     select ${COLUMNS} from allowances
     where (key, kind) in (select key, kind from jsonb_to_recordset($1::jsonb) as r (key text, kind text))
     order by key, kind for no key update)
   select locked.*, ${NOW_MS} as now from locked`,
);
const lockOf = prepared(
  'lock-allowances-of',
  `with locked as materialized (
     select ${COLUMNS} from allowances where shares ? $1 order by key, kind for no key update)
   select locked.*, ${NOW_MS} as now from locked`,
);
const make = prepared(
  'make-allowances',
  `insert into allowances (${COLUMNS})
   select ${COLUMNS} from jsonb_to_recordset($1::jsonb) as r (${TYPES}) order by key, kind
   on conflict do nothing`,
);
const save = prepared(
  'save-allowances',
  `update allowances a
   set size = r.size, used = r.used, pledged = r.pledged, at = r.at, start = r.start, counted_at = r.counted_at,
     stale = r.stale, doubt = r.doubt, recall = r.recall, shares = r.shares
   from jsonb_to_recordset($1::jsonb) as r (${TYPES}) where a.key = r.key and a.kind = r.kind`,
);
const countRows = prepared(
  'count-budget',
  `select least(${MOST},
     coalesce((select sum(prompt_tokens + completion_tokens) from usage where key = $1 and created_at >= $2), 0)
     + coalesce((select sum(tokens) from swept_usage where key = $1 and day >= $2), 0))::bigint as spent,
   least(${MOST}, coalesce((
     select sum(reserved_tokens) from jobs
     where finished_at is null and not attached and key = $1 and created_at >= $2
       and (accepted_by is null or accepted_by not in (select id from replicas))), 0))::bigint as pledged`,
);

type Locked = Allowance & { now: number };
type Limits = KeyLimits & { id: string };

export async function drawLimits(sql: Sql, replica: string, draws: readonly Draw[]): Promise<Drawn[] | null> {
  for (;;) {
    const drawn = await drawAll(sql, replica, draws);
    if (drawn === null || !('missing' in drawn)) return drawn;
    await sql.query(make, [encode(drawn.missing.map(({ key, kind }) => newAllowance(key, kind)))]);
  }
}

function drawAll(
  sql: Sql,
  replica: string,
  draws: readonly Draw[],
): Promise<Drawn[] | { missing: Draw[] } | null> {
  return sql.transaction(async (tx) => {
    if ((await tx.query(alive, [replica])).length === 0) return null;
    const keys = new Map(
      (await tx.query<Limits>(limits, [encode([...new Set(draws.map(({ key }) => key))])])).map((key) => [
        key.id,
        key,
      ]),
    );
    const rows = await lockAll(tx, draws);
    const missing = draws.filter((draw) => !rows.has(nameOf(draw)));
    if (missing.length > 0) return { missing };
    const drawn: Drawn[] = [];
    const changed: Allowance[] = [];
    for (const draw of draws) {
      const row = rows.get(nameOf(draw))!;
      const after = await drawOne(tx, replica, draw, row, keys.get(draw.key));
      drawn.push(after.drawn);
      if (isChanged(row, after.allowance, draw, replica)) changed.push(after.allowance);
    }
    if (changed.length > 0) await tx.query(save, [encode(changed)]);
    return drawn;
  });
}

/** What a replica that is no more held, in the transaction that ends its row. */
export async function leaveLimits(tx: Sql, replica: string): Promise<void> {
  const rows = await tx.query<Locked>(lockOf, [replica]);
  if (rows.length === 0) return;
  await tx.query(save, [encode(rows.map(({ now, ...row }) => leaveShare(row, replica, now)))]);
}

async function lockAll(tx: Sql, draws: readonly Draw[]): Promise<Map<string, Locked>> {
  const names = encode(draws.map(({ key, kind }) => ({ key, kind })));
  return new Map((await tx.query<Locked>(lock, [names])).map((row) => [nameOf(row), row]));
}

async function drawOne(
  tx: Sql,
  replica: string,
  draw: Draw,
  { now, ...row }: Locked,
  key: KeyLimits | undefined,
): Promise<ReturnType<typeof drawShare>> {
  const start = countFrom(row, draw, key, now);
  if (start === null) return drawShare(row, replica, draw, key, now);
  return drawShare(row, replica, draw, key, now, await countBudget(tx, draw.key, start));
}

/** What the rows of a key's budget say of the period that began then. */
export async function countBudget(tx: Sql, key: string, start: number): Promise<BudgetCount> {
  const [count] = await tx.query<{ spent: number; pledged: number }>(countRows, [key, start]);
  return { start, ...count! };
}

function nameOf({ key, kind }: { key: string; kind: string }): string {
  return `${kind} ${key}`;
}

/** What time alone brings back it brings again when it is asked later. */
function isChanged(before: Allowance, after: Allowance, draw: Draw, replica: string): boolean {
  const own = before.shares[replica];
  const now = after.shares[replica];
  return (
    draw.spent !== 0 ||
    before.size !== after.size ||
    before.recall !== after.recall ||
    before.counted_at !== after.counted_at ||
    before.doubt !== after.doubt ||
    own?.held !== now?.held ||
    own?.busy !== now?.busy ||
    own?.answered !== now?.answered
  );
}
