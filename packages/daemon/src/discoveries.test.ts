import type { BackendTold } from '@flotilla/protocol';
import { ManualClock } from '@flotilla/core/testing';
import { expect, onTestFinished, test } from 'vitest';
import { BackendSet } from './backends/backend-set.ts';
import { readConfig, type ConfigFlags } from './config.ts';
import { Discoveries, type DiscoveryMessage } from './discoveries.ts';
import { FakeServer, openaiRoutes } from './testing/fake-servers.ts';
import { recordedLog } from './testing/recorded-log.ts';
import { until } from './testing/until.ts';

async function serve(routes: FakeServer['routes']): Promise<FakeServer> {
  const server = new FakeServer();
  server.routes = routes;
  await server.start();
  onTestFinished(() => server.stop());
  return server;
}

/** Real backends over real connections; what is said to the control plane is kept. */
async function open(backends: NonNullable<ConfigFlags['backends']>) {
  const clock = new ManualClock();
  const log = recordedLog();
  const config = readConfig({ flags: { find_backends: false, probe: 'list', backends } });
  const set = new BackendSet({ config, clock, log, ports: [], on_change: () => {} });
  onTestFinished(() => set.stop());
  await set.start();
  const said: DiscoveryMessage[] = [];
  const discoveries = new Discoveries({ backends: set, post: (message) => said.push(message), clock, log });
  const results = () => said.filter((message) => message.type === 'discovery.result');
  return { set, clock, discoveries, said, results };
}

const byBackend = (a: BackendTold, b: BackendTold) => (a.backend < b.backend ? -1 : 1);

test('a server that hangs does not cost the lists of the others: they are told before the time is over', async () => {
  const good = await serve(openaiRoutes(['m']));
  const bad = await serve(openaiRoutes(['x']));
  const { set, clock, discoveries, said, results } = await open([
    { id: 'good', url: good.url },
    { id: 'hangs', url: bad.url },
  ]);
  await until(() => expect(set.states().map(({ health }) => health.health)).toEqual(['healthy', 'healthy']));
  bad.routes = { '/v1/models': { hang: true } };
  clock.advance(1000); // a list was just asked for
  const asked = good.count('/v1/models');
  discoveries.asked({ request: 'disc_1', left_ms: 2000 });
  await until(() => expect(said.at(-1)).toMatchObject({ stage: 'listing', backend: 'hangs' }));
  await until(() => expect(good.count('/v1/models')).toBe(asked + 1));
  expect(said[0]).toEqual({ type: 'discovery.progress', request: 'disc_1', stage: 'claimed' });
  clock.advance(1499);
  expect(results()).toEqual([]);
  clock.advance(1);
  await until(() => expect(results()).toHaveLength(1));
  expect(results()[0]!.results.toSorted(byBackend)).toEqual([
    {
      outcome: 'listed',
      backend: 'good',
      kind: 'openai',
      models: [{ id: 'm', operations: ['chat', 'completions'] }],
      models_total: 1,
    },
    { outcome: 'failed', backend: 'hangs', reason: 'timed_out', stage: 'listing' },
  ]);
});

test('lists that are too long for a message are shortened, and say how long they were', async () => {
  const names = Array.from({ length: 2000 }, (_, index) => `model-${index}-${'x'.repeat(200)}`);
  const server = await serve(openaiRoutes(names));
  const { set, clock, discoveries, results } = await open([{ id: 'hub', url: server.url }]);
  await until(() => expect(set.states()[0]?.health.health).toBe('healthy'));
  clock.advance(1000); // a list was just asked for
  discoveries.asked({ request: 'disc_1', left_ms: 30_000 });
  await until(() => expect(results()).toHaveLength(1));
  const [told] = results()[0]!.results;
  if (told?.outcome !== 'listed') throw new Error('It told no list.');
  expect(told.models_total).toBe(2000);
  expect(told.models.length).toBeLessThan(2000);
  expect(Buffer.byteLength(JSON.stringify(results()[0]))).toBeLessThan(256 * 1024);
});

test('what was told is forgotten for what is new, however many are never acknowledged', async () => {
  const server = await serve(openaiRoutes(['m']));
  const { discoveries, clock, results } = await open([{ id: 'main', url: server.url }]);
  for (let index = 0; index < 40; index++) {
    discoveries.asked({ request: `disc_${index}`, left_ms: 30_000 });
    const again = setInterval(() => clock.advance(250), 5); // lists are asked for at most so often
    await until(() => expect(results().some(({ request }) => request === `disc_${index}`)).toBe(true));
    clearInterval(again);
  }
  const before = results().length;
  discoveries.asked({ request: 'disc_39', left_ms: 30_000 });
  expect(results()).toHaveLength(before + 1); // still known
  discoveries.acknowledged('disc_39');
  discoveries.asked({ request: 'disc_0', left_ms: 30_000 });
  expect(results()).toHaveLength(before + 1); // not known any more: it is asked for anew
});

test('models that their owner named are served by a server without a list; the discovery still says that there is none', async () => {
  const bare = await serve({});
  const locked = await serve({ '/v1/models': { status: 401, json: {} } });
  const part = await serve(openaiRoutes(['listed']));
  const down = await serve({});
  await down.stop();
  const models = ['named'];
  const { set, discoveries, results } = await open([
    { id: 'bare', url: bare.url, models },
    { id: 'down', url: down.url, models },
    { id: 'locked', url: locked.url, models },
    { id: 'part', url: part.url, models },
  ]);
  const offered = () =>
    set.states().map(({ id, health, models: all }) => [id, health.health, all.map((model) => model.id)]);
  await until(() =>
    expect(offered()).toEqual([
      ['bare', 'healthy', ['named']],
      ['down', 'down', []],
      ['locked', 'healthy', ['named']],
      ['part', 'healthy', ['listed', 'named']],
    ]),
  );
  discoveries.asked({ request: 'disc_1', left_ms: 30_000 });
  await until(() => expect(results()).toHaveLength(1));
  const told = results()[0]!
    .results.toSorted(byBackend)
    .map((one) => {
      return one.outcome === 'listed' ? one.models.map(({ id }) => id) : `${one.reason} ${one.stage}`;
    });
  expect(told).toEqual([
    'backend_down identifying',
    'backend_down connecting',
    'not_authorised identifying',
    ['listed', 'named'],
  ]);
});
