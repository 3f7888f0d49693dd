import { Logger, makeWorkerUtils, run } from 'graphile-worker';
import { EventEmitter } from 'node:events';
import pg from 'pg';
import { takeOrders } from '../orders.ts';
import { runJobs } from './run.ts';

/** graphile-worker as its page on performance has it: a local queue, completions in batches, 24 jobs at once. */
const logger = new Logger(() => () => undefined);
const pgPool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 14 });
const utils = await makeWorkerUtils({ pgPool, logger });
await utils.migrate();

takeOrders({
  run: (given) =>
    runJobs(given, {
      one: (n) => utils.addJob('nothing', { n }),
      many: (numbers) => utils.addJobs(numbers.map((n) => ({ identifier: 'nothing', payload: { n } }))),
      async work(ended) {
        const events = new EventEmitter();
        events.on('job:complete', () => ended(1));
        const runner = await run({
          pgPool,
          logger,
          events,
          noHandleSignals: true,
          taskList: { nothing: () => undefined },
          concurrency: 24,
          preset: {
            worker: {
              concurrentJobs: 24,
              localQueue: { size: 500, refetchDelay: { durationMs: 10 } },
              completeJobBatchDelay: 0,
              failJobBatchDelay: 0,
            },
          },
        });
        return () => runner.stop();
      },
    }),
});
