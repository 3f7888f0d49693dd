import { PgBoss } from 'pg-boss';
import { takeOrders } from '../orders.ts';
import { runJobs } from './run.ts';

/**
 * pg-boss, told to go on fetching while there is work, which its `work` does not do below a poll of half a second: its own
 * `fetch` and `complete`, 200 jobs at a time, are the fastest way that it documents.
 */
const QUEUE = 'bench';
const FETCHED = 200;
const boss = new PgBoss({
  connectionString: process.env.DATABASE_URL,
  supervise: false,
  schedule: false,
  max: 10,
});
boss.on('error', (error) => process.stderr.write(`${error}\n`));
await boss.start();
await boss.createQueue(QUEUE);

takeOrders({
  run: (given) =>
    runJobs(given, {
      one: (n) => boss.send(QUEUE, { n }),
      many: (numbers) =>
        boss.insert(
          QUEUE,
          numbers.map((n) => ({ data: { n } })),
        ),
      async work(ended) {
        let over = false;
        const worker = async () => {
          while (!over) {
            const jobs = await boss.fetch(QUEUE, { batchSize: FETCHED });
            if (jobs.length === 0) {
              await new Promise((soon) => setTimeout(soon, 2));
              continue;
            }
            await boss.complete(
              QUEUE,
              jobs.map(({ id }) => id),
            );
            ended(jobs.length);
          }
        };
        const workers = [worker(), worker()];
        return async () => {
          over = true;
          await Promise.all(workers);
        };
      },
    }),
});
