import type { Store } from '@flotilla/core';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openEngine } from '../../packages/control/src/store/open.ts';
import type { Engine } from '../../packages/control/src/store/sql.ts';
import { storeOn } from '../../packages/control/src/store/store.ts';
import { embeddedPlace, type Place, quiet } from '../support/store.ts';
import { type Call, calls, START } from './store-calls.ts';
import { createDatabase, type Database } from './store/database.ts';
import { bytewise } from './store/tables.ts';

/** FLOTILLA_TEST_SEQUENCES=5000 asks of more, chosen anew each time; a failure prints the seed and path that repeat it. */
const ASKED = Number(process.env['FLOTILLA_TEST_SEQUENCES'] ?? 0);
const RUNS: fc.Parameters<unknown> = ASKED > 0 ? { numRuns: ASKED } : { numRuns: 300, seed: 4 };

/** What the conformance suites do not think of: both stores are told the same, by one clock, and have to agree. */
describe('the store of the simulation, beside the embedded one', () => {
  let place: Place;
  let sql: Engine;
  let embedded: Store;

  beforeAll(async () => {
    place = await embeddedPlace();
    sql = await openEngine(place.options, quiet);
    await giveClock(sql);
    embedded = storeOn(sql, quiet);
  });

  afterAll(async () => {
    await sql?.close();
    await place?.drop();
  });

  test('gives the same answers to any sequence of calls about jobs, and has the same rows after it', {
    timeout: 60_000 + 100 * ASKED,
  }, async () => {
    await fc.assert(
      fc.asyncProperty(calls, async (sequence) => {
        let now_ms = START;
        const database = createDatabase({ now_ms: () => now_ms });
        const simulated = database.connect(async (_call, commit) => commit());
        await sql.query(EMPTY);
        await setClock(sql, now_ms);
        for (const call of sequence) {
          const args = call.args(database);
          if (call.name === 'wait') await setClock(sql, (now_ms += args[0] as number));
          else expect(await ask(simulated, call, args)).toEqual(await ask(embedded, call, args));
        }
        expect(rowsOf(database)).toEqual(await rowsBeneath(sql));
      }),
      RUNS,
    );
  });
});

async function ask(store: Store, { name, unordered }: Call, args: unknown[]): Promise<unknown> {
  const ask = store[name as keyof Store] as (...args: unknown[]) => Promise<unknown>;
  const answer = await ask(...args);
  return unordered ? (answer as unknown[]).toSorted(byText) : answer;
}

function byText(a: unknown, b: unknown): number {
  const textOf = (row: unknown) =>
    typeof row === 'string'
      ? row
      : JSON.stringify(Object.entries(row as object).toSorted(([one], [other]) => bytewise(one, other)));
  return bytewise(textOf(a), textOf(b));
}

/** Puts a clock that stands still until it is set in front of the server's own. */
async function giveClock(sql: Engine): Promise<void> {
  await sql.query('create schema simulated');
  await sql.query(
    `create function simulated.clock_timestamp() returns timestamptz language sql volatile as $$
       select 'epoch'::timestamptz + current_setting('simulated.now_ms')::bigint * interval '1 millisecond' $$`,
  );
  await sql.query('set search_path = simulated, pg_catalog, public');
}

async function setClock(sql: Engine, now_ms: number): Promise<void> {
  await sql.query(`select set_config('simulated.now_ms', $1, false)`, [String(now_ms)]);
}

const EMPTY = `with jobs as (delete from jobs), attempts as (delete from attempts), bodies as (delete from job_bodies),
  used as (delete from usage) delete from swept_usage`;

const rowsIn = (table: string, order: string) =>
  `coalesce((select jsonb_agg(to_jsonb(t) order by ${order}) from ${table} t), '[]') as ${table}`;
const ROWS = `select ${rowsIn('jobs', 'id')}, ${rowsIn('attempts', 'job, attempt')}, ${rowsIn('job_bodies', 'job')},
  ${rowsIn('usage', 'job')}, ${rowsIn('swept_usage', 'key, day')}`;

async function rowsBeneath(sql: Engine): Promise<unknown> {
  const [rows] = await sql.query(ROWS);
  return rows;
}

function rowsOf(database: Database): unknown {
  const inOrder = <Row>(rows: Iterable<Row>, id: (row: Row) => string) =>
    [...rows].sort((a, b) => bytewise(id(a), id(b)));
  const { tables } = database;
  const attempts = [...tables.attempts].flatMap(([job, stories]) =>
    [...stories.values()].map((story) => ({ job, ...story })),
  );
  const swept = [...tables.swept_usage].flatMap(([key, days]) =>
    [...days].map(([day, tokens]) => ({ key, day, tokens })),
  );
  return {
    jobs: inOrder(database.jobs(), ({ id }) => id),
    attempts: inOrder(attempts, ({ job, attempt }) => `${job} ${String(attempt).padStart(9)}`),
    job_bodies: inOrder(
      [...tables.bodies].map(([job, body]) => ({ job, ...body })),
      ({ job }) => job,
    ),
    usage: inOrder(tables.usage.values(), ({ job }) => job),
    swept_usage: inOrder(swept, ({ key, day }) => `${key} ${String(day).padStart(20)}`),
  };
}
