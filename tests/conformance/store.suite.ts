import type { Log, Store } from '@flotilla/core';
import { afterAll, beforeAll, describe } from 'vitest';
import { openEngine } from '../../packages/control/src/store/open.ts';
import type { Engine } from '../../packages/control/src/store/sql.ts';
import { storeOn } from '../../packages/control/src/store/store.ts';
import type { Place } from '../support/store.ts';
import { acceptancesSuite } from './acceptances.suite.ts';
import { accountsSuite } from './accounts.suite.ts';
import { attachedSuite } from './attached.suite.ts';
import { auditSuite } from './audit.suite.ts';
import { detachedAccountsSuite } from './detached-accounts.suite.ts';
import { detachedSuite } from './detached.suite.ts';
import { discoverySuite } from './discovery.suite.ts';
import { engineSuite } from './engine.suite.ts';
import { beneathSql, type Beneath } from './beneath.ts';
import { listingsSuite } from './listings.suite.ts';
import { damagedNodesSuite, nodesSuite } from './nodes.suite.ts';
import { plansSuite } from './plans.suite.ts';
import { secretsSuite } from './secrets.suite.ts';
import { sharedLimitsSuite } from './shared-limits.suite.ts';
import { upstreamsSuite } from './upstreams.suite.ts';

/** What every part of the suite works on that asks no more than the port. */
export interface Subject {
  readonly store: Store;
  readonly beneath: Beneath;
}

/** And what those parts work on that only an SQL engine can be asked. `logged` is what the store has told its log. */
export interface EngineSubject extends Subject {
  readonly sql: Engine;
  readonly logged: { level: string; fields: Record<string, unknown>; message: string }[];
}

/** What the `Store` port promises, asked of a real engine. */
export function storeSuite(name: string, makePlace: () => Promise<Place>): void {
  describe(`the store on ${name}`, () => {
    const subject = {} as { -readonly [Part in keyof EngineSubject]: EngineSubject[Part] };
    let place: Place;

    beforeAll(async () => {
      place = await makePlace();
      subject.logged = [];
      const log = recorder(subject.logged);
      subject.sql = await openEngine(place.options, log);
      subject.store = storeOn(subject.sql, log);
      subject.beneath = beneathSql(subject.sql);
    }, 60_000);

    afterAll(async () => {
      await subject.store?.close();
      await place?.drop();
    });

    engineSuite(subject);
    accountsSuite(subject);
    nodesSuite(subject);
    damagedNodesSuite(subject);
    attachedSuite(subject);
    acceptancesSuite(subject);
    detachedSuite(subject);
    detachedAccountsSuite(subject);
    auditSuite(subject);
    discoverySuite(subject);
    sharedLimitsSuite(subject);
    upstreamsSuite(subject);
    secretsSuite(subject);
    listingsSuite(subject);
    plansSuite(subject);
  });
}

function recorder(logged: EngineSubject['logged']): Log {
  const record = (level: string) => (fields: Record<string, unknown>, message: string) =>
    void logged.push({ level, fields, message });
  return { debug: record('debug'), info: record('info'), warn: record('warn'), error: record('error') };
}
