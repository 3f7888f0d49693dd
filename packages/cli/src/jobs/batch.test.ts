import { Flotilla } from '@flotilla/sdk';
import { expect, test } from 'vitest';
import { submitLines } from './batch.ts';

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
