import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { systemClock, systemRandom } from '../../packages/control/src/clock.ts';
import { type Sealer, createSealer, openSealer } from '../../packages/control/src/secrets/sealer.ts';
import { type StoreOptions, openStore } from '../../packages/control/src/store/open.ts';
import { aProvider } from '../conformance/upstreams.suite.ts';
import { embeddedPlace, postgresPlace, quiet, testServer } from '../support/store.ts';

/** kill -9 of a start that seals all secrets anew: they are under one key or the other, all of them. */
const PROVIDERS = 200;
const [FIRST, SECOND] = ['1'.repeat(40), '2'.repeat(40)] as const;
/** Nonces are drawn for a canary to compare with, the row of the audit, the new canary, and then each secret. */
const BEFORE_SECRETS = 3;
const LAST = BEFORE_SECRETS + PROVIDERS;

async function opened<T>(
  options: StoreOptions,
  use: (store: Awaited<ReturnType<typeof openStore>>) => Promise<T>,
) {
  const store = await openStore(options, quiet);
  try {
    return await use(store);
  } finally {
    await store.close();
  }
}

const start = (store: Awaited<ReturnType<typeof openStore>>, key: string, previous?: string) =>
  openSealer(key, previous, { store, clock: systemClock, random: systemRandom, log: quiet });

/** @returns what could not be read with it */
async function unread(store: Awaited<ReturnType<typeof openStore>>, sealer: Sealer): Promise<string[]> {
  const records = await store.loadProviders();
  expect(records).toHaveLength(PROVIDERS);
  return records.flatMap(({ id, key_sealed }) => {
    try {
      return sealer.open(key_sealed!, id) === `sk-${id}` ? [] : [id];
    } catch {
      return [id];
    }
  });
}

test.each([
  ['at the first secret', BEFORE_SECRETS + 1, 0],
  ['half way', BEFORE_SECRETS + PROVIDERS / 2, 0],
  ['at the last one', LAST, 0],
  ['while they are on their way to the store', LAST, 1],
  ['about when they are committed', LAST, 8],
  ['soon after', LAST, 40],
])(
  'killed %s, it leaves every secret readable at the next start',
  async (_when, draw, ms) => {
    const place = testServer === undefined ? await embeddedPlace() : await postgresPlace(testServer);
    try {
      await opened(place.options, async (store) => {
        const first = (await start(store, FIRST))!;
        for (let made = 0; made < PROVIDERS; made++) {
          const provider = aProvider();
          const key_sealed = first.seal(`sk-${provider.id}`, provider.id);
          await store.insertProvider({ ...provider, key_sealed });
        }
      });
      const fixture = fileURLToPath(new URL('reseal.fixture.ts', import.meta.url));
      const args = [JSON.stringify(place.options), SECOND, FIRST, String(draw), String(ms)];
      const child = spawn(process.execPath, [fixture, ...args], { stdio: ['ignore', 'inherit', 'inherit'] });
      expect(await once(child, 'exit')).toEqual([null, 'SIGKILL']);
      await opened(place.options, async (store) => {
        // With the old key alone, or the new one: one of them has all, the other is told so.
        const under = await Promise.allSettled([start(store, FIRST), start(store, SECOND)]);
        expect(under.map(({ status }) => status).toSorted()).toEqual(['fulfilled', 'rejected']);
        const now = under[0].status === 'fulfilled' ? FIRST : SECOND;
        expect(await unread(store, createSealer(now, systemRandom))).toEqual([]);
        expect(await unread(store, (await start(store, SECOND, FIRST))!)).toEqual([]);
      });
    } finally {
      await place.drop();
    }
  },
  60_000,
);
