import { describe, expect, test } from 'vitest';
import { systemClock, systemRandom } from '../../packages/control/src/clock.ts';
import { createSealer, openSealer } from '../../packages/control/src/secrets/sealer.ts';
import { quiet } from '../support/store.ts';
import { anAct } from './audit.suite.ts';
import type { EngineSubject } from './store.suite.ts';
import { aProvider } from './upstreams.suite.ts';

/** What the secret key of an installation has sealed, and how another one takes its place. */
export function secretsSuite(subject: EngineSubject): void {
  const [FIRST, SECOND, OTHER] = ['1', '2', '3'].map((letter) => letter.repeat(40)) as [
    string,
    string,
    string,
  ];
  const sealerOf = (key: string) => createSealer(key, systemRandom);
  const keptOf = async (id: string) =>
    (await subject.store.loadProviders()).find((provider) => provider.id === id)?.key_sealed ?? null;
  const open = (key?: string, previous?: string) =>
    openSealer(key, previous, {
      store: subject.store,
      clock: systemClock,
      random: systemRandom,
      log: quiet,
    });
  /** As at the first start. */
  const asNew = async () => {
    await subject.sql.query('delete from secret_canary');
    await subject.sql.query('update providers set key_sealed = null');
  };

  describe('the sealer of an installation', () => {
    test('takes the key of its first start again, and no other; none is needed until something is sealed', async () => {
      await asNew();
      expect(await open()).toBeNull();
      const sealer = (await open(FIRST))!;
      const provider = aProvider();
      await subject.store.insertProvider({ ...provider, key_sealed: sealer.seal('sk-1', provider.id) });
      expect((await open(FIRST))!.open((await keptOf(provider.id))!, provider.id)).toBe('sk-1');
      await expect(open(OTHER)).rejects.toThrow(/^FLOTILLA_SECRET_KEY is not the one/);
      await expect(open()).rejects.toThrow(/FLOTILLA_SECRET_KEY is not set, and the keys of 1 providers/);
    });

    test('lets another key take its place: all is sealed anew, and the old key opens nothing', async () => {
      await asNew();
      const first = (await open(FIRST))!;
      const [kept, spoilt] = [aProvider(), aProvider()];
      await subject.store.insertProvider({ ...kept, key_sealed: first.seal('sk-kept', kept.id) });
      // Copied from another row: it has never opened, and keeps nothing from being replaced.
      const foreign = first.seal('sk-kept', kept.id);
      await subject.store.insertProvider({ ...spoilt, key_sealed: foreign });

      await expect(open(SECOND, OTHER)).rejects.toThrow(
        /^Neither FLOTILLA_SECRET_KEY nor .*_PREVIOUS is the one/,
      );
      expect(sealerOf(FIRST).open((await keptOf(kept.id))!, kept.id)).toBe('sk-kept');

      const second = (await open(SECOND, FIRST))!;
      expect(second.open((await keptOf(kept.id))!, kept.id)).toBe('sk-kept');
      const resealed = (await keptOf(kept.id))!;
      expect(() => sealerOf(FIRST).open(resealed, kept.id)).toThrow(/unable to authenticate/);
      expect(await keptOf(spoilt.id)).toBe(foreign);
      const { rows } = await subject.store.listAudit({ action: 'secret_key.replace' }, { limit: 1 });
      expect(rows).toMatchObject([{ outcome: 'succeeded', key: null, change: { secrets: 2 } }]);

      // The setting may stay, or go.
      for (const previous of [FIRST, undefined]) expect(await open(SECOND, previous)).not.toBeNull();
      await expect(open(FIRST)).rejects.toThrow(/is not the one/);
    });

    test('seals all anew, with its row of the audit, or nothing', async () => {
      await asNew();
      await open(FIRST);
      const provider = aProvider({ key_sealed: 'old seal' });
      await subject.store.insertProvider(provider);
      const before = await subject.store.configVersion();
      const act = anAct({ action: 'secret_key.replace', target: null });
      // What a canary cannot be: the statement after the secrets fails.
      const failed = subject.store.act(act, () =>
        subject.store.resealSecrets(null as never, () => 'new seal'),
      );
      await expect(failed).rejects.toThrow(/null/);
      expect(await keptOf(provider.id)).toBe('old seal');
      expect(await open(FIRST)).not.toBeNull();
      expect(await subject.store.configVersion()).toBe(before);

      await subject.store.act(act, () => subject.store.resealSecrets('canary', () => 'new seal'));
      expect(await keptOf(provider.id)).toBe('new seal');
      expect(await subject.store.secretCanary(null)).toBe('canary');
      expect(await subject.store.configVersion()).toBe(before + 1);
      const { rows } = await subject.store.listAudit({ key: act.record.key! }, { limit: 10 });
      expect(rows).toMatchObject([{ id: act.record.id, change: { secrets: 1 } }]);
      await asNew();
    });
  });
}
