import type { Store } from '@flotilla/core';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openEngine } from '../../packages/control/src/store/open.ts';
import type { Engine } from '../../packages/control/src/store/sql.ts';
import { storeOn } from '../../packages/control/src/store/store.ts';
import { embeddedPlace, type Place, quiet } from '../support/store.ts';
import { jobCalls } from './job-calls.ts';
import { nodeCalls } from './node-calls.ts';
import { type Call, START } from './store-calls.ts';
import { emptyBeneath, rowsBeneath, rowsOf } from './store-rows.ts';
import { createDatabase } from './store/database.ts';
import { bytewise } from './store/tables.ts';

/** FLOTILLA_TEST_SEQUENCES=5000 asks of more, chosen anew each time; a failure prints the seed and path that repeat it. */
const ASKED = Number(process.env['FLOTILLA_TEST_SEQUENCES'] ?? 0);
const TIMEOUT = { timeout: 60_000 + 100 * ASKED };

/** What the conformance suites do not think of: both stores are told the same, by one clock, and have to agree. */
describe('the store of the simulation, beside the embedded one, gives the same answers and has the same rows', () => {
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

  test.each([
    { about: 'jobs', calls: jobCalls, sequences: 300 },
    { about: 'nodes and their discoveries', calls: nodeCalls, sequences: 150 },
  ])('after any calls about $about', TIMEOUT, async ({ calls, sequences }) => {
    const property = fc.asyncProperty(calls, async (sequence) => {
      let now_ms = START;
      const database = createDatabase({ now_ms: () => now_ms });
      const simulated = database.connect(async (_call, commit) => commit());
      await emptyBeneath(sql);
      await setClock(sql, now_ms);
      for (const call of sequence) {
        const args = call.args(database);
        if (call.name === 'wait') await setClock(sql, (now_ms += args[0] as number));
        else expect(await ask(simulated, call, args)).toEqual(await ask(embedded, call, args));
      }
      expect(rowsOf(database)).toEqual(await rowsBeneath(sql));
    });
    await fc.assert(property, ASKED > 0 ? { numRuns: ASKED } : { numRuns: sequences, seed: 4 });
  });
});

async function ask(store: Store, { name, unordered }: Call, args: unknown[]): Promise<unknown> {
  const operation = store[name as keyof Store] as (...args: unknown[]) => Promise<unknown>;
  try {
    const answer = await operation(...args);
    return unordered ? inSomeOrder(answer) : answer;
  } catch (error) {
    // What is refused is refused with the same code.
    return { failed: (error as { code?: string }).code ?? error };
  }
}

function inSomeOrder(answer: unknown): unknown {
  if (Array.isArray(answer)) return answer.toSorted((a, b) => bytewise(textOf(a), textOf(b)));
  const fields = Object.entries(answer as object);
  return Object.fromEntries(
    fields.map(([name, value]) => [name, Array.isArray(value) ? inSomeOrder(value) : (value as unknown)]),
  );
}

function textOf(row: unknown): string {
  if (typeof row === 'string') return row;
  return JSON.stringify(Object.entries(row as object).toSorted(([a], [b]) => bytewise(a, b)));
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
