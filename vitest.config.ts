import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** The long files, those with real processes, come first: so that at the end no worker waits for the other. */
class ProcessesFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const sorted = await super.sort(files);
    const late = (file: TestSpecification) => (file.moduleId.includes('/tests/') ? 0 : 1);
    return sorted.toSorted((a, b) => late(a) - late(b));
  }
}

/** Suites that hold times, of milliseconds or of several processes, run alone, after the others: both cores are theirs. */
const TIMED = [
  'tests/e2e/capacity.test.ts',
  'tests/e2e/cancellation.test.ts',
  'tests/e2e/lost-hints.test.ts',
  'tests/e2e/replica-cuts.test.ts',
  'tests/e2e/replica-latency.test.ts',
];

/** What takes minutes: kills, many starts, slow lines, large stores. `npm run test:long`, in the same way as the others. */
const LONG = ['tests/long/*.test.ts'];

/** Starts and kills a PostgreSQL and a NATS of its own, whose programs have to be there: `npm run test:chaos`. */
const CHAOS = ['tests/chaos/chaos.test.ts', 'tests/chaos/full-disk.test.ts'];

/** Installs the package as a user would, from the registry that npm is told of: `npm run test:package`. */
const PACKAGED = ['tests/e2e/package.test.ts'];

export default defineConfig({
  test: {
    projects: [
      {
        extends: true,
        test: {
          name: 'all',
          include: ['packages/*/src/**/*.test.ts', 'tests/**/*.test.ts'],
          exclude: ['**/node_modules/**', ...TIMED, ...LONG, ...CHAOS, ...PACKAGED],
          sequence: { groupOrder: 0 },
        },
      },
      {
        extends: true,
        test: { name: 'timed', include: TIMED, sequence: { groupOrder: 1 }, maxWorkers: 1 },
      },
      { extends: true, test: { name: 'long', include: LONG, sequence: { groupOrder: 0 } } },
      { extends: true, test: { name: 'chaos', include: CHAOS, sequence: { groupOrder: 0 } } },
      { extends: true, test: { name: 'package', include: PACKAGED, sequence: { groupOrder: 2 } } },
    ],
    globalSetup: 'tests/support/prepare.ts',
    // The tests start this program some hundred times: from the second time on without reading its source anew.
    env: { NODE_COMPILE_CACHE: fileURLToPath(new URL('node_modules/.cache/flotilla', import.meta.url)) },
    sequence: { sequencer: ProcessesFirst },
    pool: 'forks',
    // As the processes of the tests do (packages/cli/src/testing/command.ts).
    execArgv: ['--liftoff-only'],
    maxWorkers: 3,
    // Files share their worker's modules: loading them anew for each file took a tenth of the whole time.
    isolate: false,
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
