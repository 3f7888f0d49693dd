import { embeddedPlace, postgresPlace, testServer } from '../support/store.ts';
import { storeSuite } from './store.suite.ts';

storeSuite('PGlite', embeddedPlace);
if (testServer !== undefined) storeSuite('PostgreSQL', () => postgresPlace(testServer!));
