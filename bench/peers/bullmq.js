import { Queue, Worker } from 'bullmq';
import { takeOrders } from '../orders.ts';
import { runJobs } from './run.ts';

/** BullMQ on a Redis that appends to its file and syncs it before it answers: what PostgreSQL does at a commit. */
const connection = { host: '127.0.0.1', port: Number(process.env.REDIS_PORT) };
const queue = new Queue('bench', { connection });
const AT_ONCE = 200;

takeOrders({
  run: (given) =>
    runJobs(given, {
      one: (n) => queue.add('nothing', { n }),
      many: (numbers) => queue.addBulk(numbers.map((n) => ({ name: 'nothing', data: { n } }))),
      async work(ended) {
        const worker = new Worker('bench', () => Promise.resolve(), {
          connection,
          concurrency: AT_ONCE,
          removeOnComplete: { count: 0 },
        });
        worker.on('completed', () => ended(1));
        worker.on('error', (error) => process.stderr.write(`${error}\n`));
        await worker.waitUntilReady();
        return () => worker.close();
      },
    }),
});
