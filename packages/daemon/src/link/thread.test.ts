import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { expect, test } from 'vitest';
import { LinkBench } from '../testing/link-bench.ts';
import type { FromLink } from '../threads.ts';

test('as a worker the link serves, reports, and ends by itself after a drain', async () => {
  const bench = new LinkBench();
  await Promise.all([bench.control.listen(), bench.backend.listen()]);
  const worker = new Worker(new URL('./thread.ts', import.meta.url), { workerData: bench.data() });
  const exited = once(worker, 'exit');
  worker.on('message', (message: FromLink) => {
    bench.posted.push(message);
    bench.control.nudge();
  });
  await bench.up();
  bench.control.offer('job_a');
  await bench.control.message('job.completed', 'job_a');
  await bench.control.until(() => bench.posts('load').some((load) => load.attempts.length === 0));
  expect(bench.posts('backend_served')).toEqual([
    { type: 'backend_served', backend: 'main', model: 'm', operation: 'chat' },
  ]);
  expect(bench.posts('load').flatMap((load) => load.ended)).toMatchObject([
    { outcome: 'completed', operation: 'chat' },
  ]);
  worker.postMessage({ type: 'drain', deadline_ms: 1000, reason: 'stopping' });
  expect(await exited).toEqual([0]);
  expect(bench.posts('stopped')).toMatchObject([{ why: 'drained' }]);
  expect(bench.control.all('node.deregister').length).toBe(1);
  await Promise.all([bench.control.close(), bench.backend.close()]);
});
