import { Flotilla } from '@flotilla/sdk';
import { expect, test } from 'vitest';
import { submitLines, waitForAll, waitForResult } from './batch.ts';

/** How many jobs each request had. */
async function batchesOf(lines: Iterable<string>): Promise<number[]> {
  const sizes: number[] = [];
  const client = new Flotilla({
    url: 'http://127.0.0.1:7400',
    fetch: (_url, init) => {
      const { jobs } = JSON.parse(init?.body as string) as { jobs: unknown[] };
      sizes.push(jobs.length);
      const data = jobs.map((_, n) => ({ id: `job_${n}`, state: 'queued', existing: false }));
      return Promise.resolve(Response.json({ data }));
    },
  });
  async function* read() {
    yield* lines;
  }
  let told = 0;
  for await (const batch of submitLines(client, read(), {}, '')) told += batch.length;
  expect(told).toBe([...lines].length);
  return sizes;
}

test('lines go in batches that a control plane takes, by their number and by their bytes', async () => {
  const line = (text: string) => JSON.stringify({ model: 'm', messages: [{ role: 'user', content: text }] });
  expect(await batchesOf(Array.from({ length: 2500 }, (_, n) => line(String(n))))).toEqual([1000, 1000, 500]);
  const large = 'x'.repeat(1.5 * 1024 * 1024);
  expect(await batchesOf([line(large), line(large), line(large), line('small')])).toEqual([2, 2]);
});

test('results come in order, a few at once, and one for which there is no room now is asked for again', async () => {
  const ids = Array.from({ length: 60 }, (_, n) => `job_${n}`);
  const refused = new Set<string>();
  let asked = 0;
  let taken = 0;
  let ahead = 0;
  const client = new Flotilla({
    url: 'http://127.0.0.1:7400',
    fetch: (url) => {
      const [, id, events] = /(job_\d+)(\/events)?$/.exec(new Request(url).url)!;
      const job = { id, state: 'succeeded', finished_at: '2026-01-01T00:00:00Z' };
      if (events !== undefined) {
        return Promise.resolve(new Response(`event: state\ndata: ${JSON.stringify(job)}\n\n`));
      }
      if (!refused.has(id!)) {
        refused.add(id!);
        const error = { code: 'unavailable', message: 'There is no room.' };
        return Promise.resolve(Response.json({ error }, { status: 503, headers: { 'retry-after-ms': '1' } }));
      }
      ahead = Math.max(ahead, ++asked - taken);
      return Promise.resolve(Response.json({ ...job, result: { of: id } }));
    },
  });
  const told: unknown[] = [];
  for await (const job of waitForAll(ids, (id) => waitForResult(client, id))) {
    taken++;
    told.push(job.result);
  }
  expect(told).toEqual(ids.map((of) => ({ of })));
  expect(ahead).toBeLessThanOrEqual(16);
});
