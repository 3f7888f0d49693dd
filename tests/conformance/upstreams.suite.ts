import type { ProviderRecord, RouteRecord } from '@flotilla/core';
import { describe, expect, test } from 'vitest';
import { newId, T0 } from './rows.ts';
import type { Subject } from './store.suite.ts';

export function aProvider(over: Partial<ProviderRecord> = {}): ProviderRecord {
  const id = newId('provider');
  return {
    id,
    name: `up-${id.slice(-12)}`,
    base_url: 'https://api.example.com/v1',
    key_sealed: 'v1.nonce.sealed',
    key_header: 'authorization',
    labels: { zone: 'eu' },
    concurrency: 2 ** 33,
    enabled: true,
    probe: 'models',
    connect_timeout_ms: null,
    first_byte_timeout_ms: 2 ** 33,
    idle_timeout_ms: 1,
    created_at: T0,
    ...over,
  };
}

export function aRoute(over: Partial<RouteRecord> = {}): RouteRecord {
  const id = newId('route');
  return {
    id,
    name: `public-${id.slice(-12)}`,
    aliases: [`alias-${id.slice(-12)}`],
    targets: [{ provider: null, model: 'llama3', labels: { gpu: 'yes' } }],
    enabled: true,
    created_at: T0,
    ...over,
  };
}

export function upstreamsSuite(subject: Subject): void {
  const providerOf = async (id: string) =>
    (await subject.store.loadProviders()).find((provider) => provider.id === id);
  const routeOf = async (id: string) => (await subject.store.loadRoutes()).find((route) => route.id === id);
  const to = (provider: ProviderRecord, model = 'm') => [{ provider: provider.id, model, labels: {} }];

  describe('providers', () => {
    test('one comes back as it was put in, and as it was changed', async () => {
      const provider = aProvider();
      expect(await subject.store.insertProvider(provider)).toEqual({ provider });
      expect(await providerOf(provider.id)).toEqual(provider);
      const patch = { key_sealed: null, labels: {}, enabled: false, idle_timeout_ms: null };
      const after = { ...provider, ...patch };
      expect(await subject.store.updateProvider(provider.id, patch)).toEqual({ provider: after });
      expect(await subject.store.updateProvider(provider.id, {})).toEqual({ provider: after });
      expect(await providerOf(provider.id)).toEqual(after);
    });

    test('a name is taken once, also by many at once, and changes nothing where it is', async () => {
      const [a, b] = [aProvider(), aProvider()];
      const made = await Promise.all(
        Array.from({ length: 5 }, () => subject.store.insertProvider(aProvider({ name: a.name }))),
      );
      expect(made.filter((write) => 'provider' in write)).toHaveLength(1);
      await subject.store.insertProvider(b);
      expect(await subject.store.updateProvider(b.id, { name: a.name })).toEqual({ refused: 'name_taken' });
      expect(await subject.store.updateProvider(b.id, { name: b.name })).toEqual({ provider: b });
      expect(await subject.store.updateProvider('prv_none', { name: 'x' })).toEqual({ refused: 'unknown' });
    });

    test('one that a route names stays until none does', async () => {
      const provider = aProvider();
      const route = aRoute({ targets: to(provider) });
      await subject.store.insertProvider(provider);
      await subject.store.insertRoute(route);
      expect(await subject.store.deleteProvider(provider.id)).toEqual({ used_by: [route.name] });
      await subject.store.deleteRoute(route.id);
      expect(await subject.store.deleteProvider(provider.id)).toBe('deleted');
      expect(await subject.store.deleteProvider(provider.id)).toBe('unknown');
    });

    test('of a deletion and a route to it at once, only one happens', async () => {
      for (let n = 0; n < 5; n++) {
        const provider = aProvider();
        await subject.store.insertProvider(provider);
        const [made, gone] = await Promise.all([
          subject.store.insertRoute(aRoute({ targets: to(provider) })),
          subject.store.deleteProvider(provider.id),
        ]);
        expect('route' in made).toBe(gone !== 'deleted');
      }
    });
  });

  describe('routes', () => {
    test('one comes back as it was put in, and as it was changed', async () => {
      const provider = aProvider();
      await subject.store.insertProvider(provider);
      const route = aRoute({ targets: [...to(provider), { provider: null, model: 'x', labels: {} }] });
      expect(await subject.store.insertRoute(route)).toEqual({ route });
      expect(await routeOf(route.id)).toEqual(route);
      const patch = { aliases: [], enabled: false, targets: to(provider, 'other') };
      expect(await subject.store.updateRoute(route.id, patch)).toEqual({ route: { ...route, ...patch } });
      expect(await routeOf(route.id)).toEqual({ ...route, ...patch });
      expect(await subject.store.updateRoute('rte_none', patch)).toEqual({ refused: 'unknown' });
      expect(await subject.store.deleteRoute(route.id)).toBe(true);
      expect(await subject.store.deleteRoute(route.id)).toBe(false);
    });

    test('names and aliases are one space; what a route lets go is free again', async () => {
      const { store } = subject;
      const route = aRoute();
      const [alias] = route.aliases;
      await store.insertRoute(route);
      expect(await store.insertRoute(aRoute({ name: alias! }))).toEqual({
        refused: 'name_taken',
        name: alias,
      });
      const other = aRoute({ aliases: [] });
      await store.insertRoute(other);
      expect(await store.updateRoute(other.id, { aliases: [route.name] })).toEqual({
        refused: 'name_taken',
        name: route.name,
      });
      expect(await routeOf(other.id)).toEqual(other);
      await store.updateRoute(route.id, { aliases: [] });
      expect(await store.updateRoute(other.id, { aliases: [alias!] })).toMatchObject({
        route: { aliases: [alias] },
      });
      await store.deleteRoute(other.id);
      expect(await store.insertRoute(aRoute({ name: alias! }))).toHaveProperty('route');
    });

    test('a target that is no provider is refused, by its id', async () => {
      const refused = { refused: 'no_provider', name: 'prv_none' };
      const targets = [{ provider: 'prv_none', model: 'm', labels: {} }];
      expect(await subject.store.insertRoute(aRoute({ targets }))).toEqual(refused);
      const route = aRoute();
      await subject.store.insertRoute(route);
      expect(await subject.store.updateRoute(route.id, { targets })).toEqual(refused);
      expect(await routeOf(route.id)).toEqual(route);
    });

    test('each write that changes something raises the configuration version by one', async () => {
      const { store } = subject;
      const raisedBy = async (write: () => Promise<unknown>) => {
        const before = await store.configVersion();
        await write();
        return (await store.configVersion()) - before;
      };
      const provider = aProvider();
      const route = aRoute({ targets: to(provider) });
      expect(await raisedBy(() => store.insertProvider(provider))).toBe(1);
      expect(await raisedBy(() => store.insertProvider(aProvider({ name: provider.name })))).toBe(0);
      expect(await raisedBy(() => store.updateProvider(provider.id, { enabled: false }))).toBe(1);
      expect(await raisedBy(() => store.insertRoute(route))).toBe(1);
      expect(await raisedBy(() => store.insertRoute(aRoute({ name: route.name })))).toBe(0);
      expect(await raisedBy(() => store.updateRoute(route.id, { enabled: false }))).toBe(1);
      expect(await raisedBy(() => store.deleteProvider(provider.id))).toBe(0);
      expect(await raisedBy(() => store.deleteRoute(route.id))).toBe(1);
      expect(await raisedBy(() => store.deleteProvider(provider.id))).toBe(1);
      expect(await raisedBy(() => store.secretCanary('sealed'))).toBe(0);
    });
  });

  test('the first canary stays, whoever brings another', async () => {
    const [first] = await Promise.all([subject.store.secretCanary('one'), subject.store.secretCanary('two')]);
    expect(await subject.store.secretCanary('three')).toBe(first);
    expect(await subject.store.secretCanary(null)).toBe(first);
  });
}
