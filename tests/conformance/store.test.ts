import { embeddedPlace, postgresPlace, testServer } from '../support/store.ts';
import { firstPlansSuite } from './plans.suite.ts';
import { storeSuite } from './store.suite.ts';

for (const suite of [storeSuite, firstPlansSuite]) {
  suite('PGlite', embeddedPlace);
  if (testServer !== undefined) suite('PostgreSQL', () => postgresPlace(testServer!));
}
