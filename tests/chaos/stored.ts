import { saidIn } from './answers.ts';
import type { Seen } from './history.ts';

interface Row {
  id: string;
  key: string;
  state: string;
  error: string | null;
  result: string | null;
  succeeded: number;
  usages: number;
}

/** All detached jobs as a store has them, past the product; each carries its number in its idempotency key. */
export async function storedJobs(
  query: (text: string) => Promise<object[]>,
): Promise<Omit<Extract<Seen, { type: 'stored' }>, 'type'>[]> {
  const rows = (await query(
    `select j.id, j.idempotency_key as key, j.state, j.error_code as error, b.result,
       (select count(*)::int from attempts a where a.job = j.id and a.outcome = 'succeeded') as succeeded,
       (select count(*)::int from usage u where u.job = j.id) as usages
     from jobs j join job_bodies b on b.job = j.id`,
  )) as Row[];
  return rows.map(({ key, result, ...row }) => ({
    ...row,
    number: Number(key.replace('job-', '')),
    said: result === null ? null : saidIn(JSON.parse(result)),
  }));
}
