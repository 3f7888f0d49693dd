import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { embeddedPlace, type Place, postgresPlace, testServer } from '../support/store.ts';
import { backupSuite, copySuite } from '../conformance/backup.suite.ts';

/** Where no store has ever been. */
const nothing = (): Promise<Place> => {
  const data_dir = mkdtempSync(join(tmpdir(), 'flotilla-test-'));
  const drop = () => Promise.resolve(rmSync(data_dir, { recursive: true, force: true }));
  return Promise.resolve({ options: { data_dir }, drop });
};

// Across: what one engine has saved, the other one reads.
if (testServer === undefined) {
  backupSuite('PGlite', embeddedPlace, embeddedPlace);
} else {
  const postgres = () => postgresPlace(testServer!);
  backupSuite('PostgreSQL', postgres, postgres);
  backupSuite('PGlite, restored to PostgreSQL', embeddedPlace, postgres);
  copySuite('of PGlite to PostgreSQL', embeddedPlace, postgres);
  copySuite('of PostgreSQL to PGlite', postgres, nothing);
}
