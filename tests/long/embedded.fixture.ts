import { openStore } from '../../packages/control/src/store/open.ts';
import { quiet } from '../support/store.ts';
import { aSettlement } from '../conformance/rows.ts';

/**
 * A process that has an embedded store open: `node embedded.fixture.ts DIR hold|settle`. It prints `open`, then with
 * `settle` every job id that the store has acknowledged, one a line, until it is killed. What refuses it goes to stderr.
 */
const [, , data_dir, task] = process.argv;

try {
  const store = await openStore({ data_dir: data_dir! }, quiet);
  process.stdout.write('open\n');
  if (task === 'settle') {
    for (;;) {
      const batch = Array.from({ length: 10 }, () => aSettlement());
      await store.settle(batch);
      process.stdout.write(`${batch.map(({ job }) => job.id).join('\n')}\n`);
    }
  }
  setInterval(() => undefined, 60_000);
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
