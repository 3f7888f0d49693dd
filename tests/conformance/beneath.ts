import type { Allowance } from '@flotilla/core';
import type { Sql } from '../../packages/control/src/store/sql.ts';

/** What the suites ask of a store that its port does not tell. */
export interface Beneath {
  /** All jobs, and how many attempts and usage rows: equal where nothing was written in between. */
  contents(): Promise<unknown>;
  attemptsOf(job: string): Promise<number>;
  discoveriesOf(node: string): Promise<number>;
  /** What is kept of a key's usage rows that are gone. */
  sweptUsage(key: string): Promise<{ day: number; tokens: number }[]>;
  /** What replicas hold of a key's limits, by kind. */
  sharesOf(key: string): Promise<Record<string, Allowance['shares']>>;
  /** Resolves when the store's clock has moved on by some milliseconds. */
  clockMoves(): Promise<void>;
}

export function beneathSql(sql: Sql): Beneath {
  const count = async (from: string, id: string) =>
    (await sql.query<{ count: number }>(`select count(*) as count from ${from} = $1`, [id]))[0]!.count;
  return {
    contents: () =>
      sql.query(
        `select (select count(*) from jobs) as jobs, (select count(*) from attempts) as attempts,
           (select count(*) from usage) as usage, (select md5(string_agg(t::text, ',' order by id)) from jobs t) as digest`,
      ),
    attemptsOf: (job) => count('attempts where job', job),
    discoveriesOf: (node) => count('model_discoveries where node', node),
    sweptUsage: (key) => sql.query('select day, tokens from swept_usage where key = $1', [key]),
    async sharesOf(key) {
      const rows = await sql.query<Allowance>('select kind, shares from allowances where key = $1', [key]);
      return Object.fromEntries(rows.map(({ kind, shares }) => [kind, shares]));
    },
    clockMoves: async () => void (await sql.query('select pg_sleep(0.01)')),
  };
}
