import { readDescriptor } from '@flotilla/protocol';
import { describe, expect, onTestFinished, test } from 'vitest';
import { readConfig, type ConfigFlags } from '../config.ts';
import { describeNode } from '../descriptor.ts';
import {
  embedded,
  FakeServer,
  llamaCppRoutes,
  ollamaRoutes,
  openaiRoutes,
  vllmRoutes,
} from '../testing/fake-servers.ts';
import { ManualClock } from '@flotilla/core/testing';
import { recordedLog } from '../testing/recorded-log.ts';
import { BackendSet, type BackendState } from './backend-set.ts';
import { until } from '../testing/until.ts';

async function serve(routes: FakeServer['routes']): Promise<FakeServer> {
  const server = new FakeServer();
  server.routes = routes;
  await server.start();
  onTestFinished(() => server.stop());
  return server;
}

/** A set on a clock that the test moves; its questions go over real connections. */
async function open(flags: ConfigFlags, ports: readonly number[] = []) {
  const bench = build(flags, ports);
  await bench.set.start();
  return bench;
}

function build(flags: ConfigFlags, ports: readonly number[] = []) {
  const clock = new ManualClock();
  const log = recordedLog();
  const changes: BackendState[][] = [];
  const set: BackendSet = new BackendSet({
    config: readConfig({ flags }),
    clock,
    log,
    ports,
    on_change: () => void changes.push(set.states()),
  });
  onTestFinished(() => set.stop());
  const only = () => {
    const [state] = set.states();
    if (state === undefined) throw new Error('There is no backend.');
    return state;
  };
  const healthy = () => until(() => expect(only().health).toMatchObject({ health: 'healthy', models: [] }));
  return { set, clock, log, changes, only, healthy };
}

describe('a backend that its owner named', () => {
  test('is proved by one real token, sent with its key, and then healthy', async () => {
    const server = await serve(openaiRoutes(['m']));
    const { only, healthy } = await open({ backends: [{ url: server.url, api_key: 'sk-1' }] });
    await healthy();
    expect(server.asked.find(({ path }) => path === '/v1/chat/completions')).toMatchObject({
      body: { model: 'm', max_tokens: 1, stream: false },
      headers: { authorization: 'Bearer sk-1' },
    });
    expect(only()).toMatchObject({
      id: `127.0.0.1:${server.port}`,
      kind: 'openai',
      found: false,
      models: [{ id: 'm' }],
    });
  });

  test('that is not there yet is down with the reason, and healthy soon after it came', async () => {
    const server = await serve(openaiRoutes(['m']));
    await server.stop();
    const { only, clock, healthy } = await open({ backends: [{ url: server.url, id: 'main' }] });
    await until(() => expect(only().health.reason).toMatch(/refused/));
    expect(only()).toMatchObject({ id: 'main', kind: 'unknown', models: [], health: { health: 'down' } });
    await server.start();
    clock.advance(5_000);
    await healthy();
    expect(only().kind).toBe('openai');
  });

  test('that dies is down the moment a request has failed on it, long before the next probe', async () => {
    const server = await serve(openaiRoutes(['m']));
    const { set, only, healthy, changes } = await open({ backends: [{ url: server.url, id: 'main' }] });
    await healthy();
    await server.stop();
    changes.length = 0;
    set.requestFailed('main', 'm', 'the connection was refused');
    await until(() => expect(only().health.health).toBe('down'));
    expect(changes.at(-1)?.[0]?.health).toMatchObject({
      health: 'down',
      reason: expect.stringContaining('refused') as string,
    });
    // Its model is still said to be here: the fleet knows the name of what it waits for.
    expect(only().models).toMatchObject([{ id: 'm' }]);
  });

  test('whose list answers while its model does not is down: a probe that only looks would not see it', async () => {
    const server = await serve({
      ...openaiRoutes(['m']),
      '/v1/chat/completions': { status: 500, json: { error: { message: 'CUDA out of memory' } } },
    });
    const { only, clock, healthy } = await open({ backends: [{ url: server.url }] });
    await until(() =>
      expect(only().health).toMatchObject({
        health: 'down',
        reason: expect.stringContaining('CUDA out of memory') as string,
      }),
    );
    server.routes = openaiRoutes(['m']);
    clock.advance(250);
    await healthy();
  });

  test('that refuses chat but embeds is found to be for embeddings', async () => {
    const server = await serve({
      ...vllmRoutes('m'),
      '/v1/chat/completions': { status: 400, json: {} },
      '/v1/embeddings': embedded,
    });
    const { only, healthy } = await open({ backends: [{ url: server.url }] });
    await healthy();
    expect(only().models).toMatchObject([{ id: 'm', operations: ['embeddings'] }]);
  });

  test('whose answers stay away is broken, not slow for ever, and stop does not wait for it', async () => {
    const server = await serve({ ...openaiRoutes(['m']), '/v1/chat/completions': { hang: true } });
    const { set, only } = await open({ backends: [{ url: server.url }] });
    await until(() => expect(server.count('/v1/chat/completions')).toBe(1));
    expect(only().health.models).toEqual([
      { id: 'm', health: 'degraded', reason: 'Its first probe is under way.' },
    ]);
    await set.stop();
  });

  test('that became another kind of server under the same address is asked as that, even between two probes', async () => {
    const server = await serve(vllmRoutes('m'));
    const { only, clock, healthy } = await open({ backends: [{ url: server.url }] });
    await healthy();
    server.routes = ollamaRoutes({ 'n:latest': {} });
    const proofs = server.count('/v1/chat/completions');
    await until(() => {
      clock.advance(1_000);
      expect(only()).toMatchObject({ kind: 'ollama', models: [{ id: 'n:latest' }] });
    });
    expect(server.count('/v1/chat/completions')).toBe(proofs);
  });

  test('of no known kind that became an Ollama is known as that within a minute', async () => {
    const server = await serve(openaiRoutes(['m']));
    const { only, clock, healthy } = await open({ backends: [{ url: server.url }] });
    await healthy();
    server.routes = ollamaRoutes({ 'n:latest': {} });
    const began = clock.now_ms();
    await until(() => {
      clock.advance(1_000);
      expect(only()).toMatchObject({ kind: 'ollama', models: [{ id: 'n:latest' }] });
    });
    expect(clock.now_ms() - began).toBeLessThanOrEqual(80_000);
  });
});

describe('a probe never moves a model in or out of memory', () => {
  test('an Ollama is asked for no token, neither of what is loaded nor of what is not', async () => {
    const server = await serve(ollamaRoutes({ cold: {}, warm: { loaded: true } }));
    const { clock, healthy, set } = await open({ backends: [{ url: server.url, id: 'o' }] });
    await healthy();
    await until(() => {
      clock.advance(10_000);
      expect(server.count('/api/tags')).toBeGreaterThan(9);
    });
    const lists = server.count('/api/tags');
    const failed_ms = clock.now_ms();
    set.requestFailed('o', 'cold', 'x');
    await until(() => {
      clock.advance(10);
      expect(server.count('/api/tags')).toBeGreaterThan(lists);
    });
    // Sooner than the list that would have been asked for anyway.
    expect(clock.now_ms() - failed_ms).toBeLessThan(5_000);
    expect(server.count('/v1/chat/completions')).toBe(0);
    // A failure of what is loaded is worth a proof: it was in use this moment, with these settings.
    set.requestFailed('o', 'warm', 'x');
    await until(() => expect(server.count('/v1/chat/completions')).toBe(1));
  });

  test('a server of no known kind with several models is asked for none, unless its owner says that it may be', async () => {
    const server = await serve(openaiRoutes(['a', 'b']));
    const { healthy } = await open({ backends: [{ url: server.url }] });
    await healthy();
    expect(server.count('/v1/chat/completions')).toBe(0);
    const { healthy: alsoHealthy } = await open({ backends: [{ url: server.url, probe: 'generate' }] });
    await alsoHealthy();
    expect(server.count('/v1/chat/completions')).toBe(2);
  });
});

describe('found backends', () => {
  test('appear while the daemon runs, within thirty seconds or when the operator asks', async () => {
    const first = await serve(ollamaRoutes({ a: {} }));
    const second = await serve(vllmRoutes('m'));
    await first.stop();
    await second.stop();
    const { set, clock } = await open({}, [first.port, second.port]);
    expect(set.states()).toEqual([]);
    await first.start();
    clock.advance(30_000);
    await until(() =>
      expect(set.states()).toMatchObject([
        { id: `ollama-${first.port}`, found: true, health: { health: 'healthy' } },
      ]),
    );
    await second.start();
    await set.look(true);
    expect(set.states().map(({ kind }) => kind)).toEqual(['ollama', 'vllm']);
  });

  test('that restart keep their place; that stay away for five minutes are gone', async () => {
    const server = await serve(vllmRoutes('m'));
    const { set, clock, only, healthy } = await open({}, [server.port]);
    await healthy();
    await server.stop();
    clock.advance(10_000);
    await until(() => expect(only().health.health).toBe('down'));
    for (let seconds = 0; seconds < 270; seconds += 30) {
      clock.advance(30_000);
      await set.look();
      expect(set.states()).toHaveLength(1);
    }
    clock.advance(30_000);
    await set.look(); // the one that began before the time was up …
    await set.look(); // … and the next
    expect(set.states()).toEqual([]);
  });

  test('that are unreachable are dropped at once when the operator asks', async () => {
    const server = await serve(vllmRoutes('m'));
    const { set, clock, only, healthy } = await open({}, [server.port]);
    await healthy();
    await server.stop();
    clock.advance(10_000);
    await until(() => expect(only().health.health).toBe('down'));
    await set.look(true);
    expect(set.states()).toEqual([]);
  });

  test('give way to another server that took their port', async () => {
    const server = await serve(vllmRoutes('m'));
    const { set, clock, only, healthy } = await open({}, [server.port]);
    await healthy();
    await server.stop();
    clock.advance(10_000);
    await until(() => expect(only().health.health).toBe('down'));
    server.routes = llamaCppRoutes('n');
    await server.start();
    clock.advance(30_000);
    await until(() => expect(set.states().map(({ id }) => id)).toEqual([`llama.cpp-${server.port}`]));
  });

  test('that were named by their owner are not counted twice', async () => {
    const server = await serve(vllmRoutes('m'));
    const { set } = await open({ backends: [{ url: `http://localhost:${server.port}/v1`, id: 'mine' }] }, [
      server.port,
    ]);
    expect(set.states().map(({ id }) => id)).toEqual(['mine']);
  });

  test('are not looked for where the owner does not want it', async () => {
    const server = await serve(vllmRoutes('m'));
    const { set } = await open({ find_backends: false }, [server.port]);
    expect(set.states()).toEqual([]);
    expect(server.asked).toEqual([]);
  });
});

describe('pools and descriptor', () => {
  test('a pool’s size is the owner’s, else the backend’s, else four, and it says which', async () => {
    const server = await serve(llamaCppRoutes('m', 3));
    const other = await serve(vllmRoutes('n'));
    const backends = [
      { url: server.url, id: 'a', slots: 7 },
      { url: server.url, id: 'b' },
      { url: other.url, id: 'c' },
    ];
    const { set } = await open({ backends });
    await until(() => expect(set.settled).toBe(true));
    const sizes = (states: BackendState[]) =>
      states.map(({ capacity, capacity_from }) => [capacity, capacity_from]);
    expect(sizes(set.states())).toEqual([
      [7, 'config'],
      [3, 'backend'],
      [4, 'default'],
    ]);
    await set.reconfigure(readConfig({ flags: { backends, slots: 2 } }));
    expect(sizes(set.states())).toEqual([
      [7, 'config'],
      [2, 'config'],
      [2, 'config'],
    ]);
  });

  test('the hash is the same for the same node, and another when a model came', async () => {
    const server = await serve(ollamaRoutes({ a: {}, b: {} }));
    const { set, healthy, clock } = await open({ backends: [{ url: server.url, id: 'o' }] });
    await healthy();
    const node = () =>
      describeNode({ name: 'box', labels: { b: '1', a: '2' }, version: '1', backends: set.states() });
    const before = node();
    expect(node().descriptor_hash).toBe(before.descriptor_hash);
    // The control plane reads all of it.
    expect(readDescriptor(before.descriptor, 'box')).toEqual({ descriptor: before.descriptor, warnings: [] });
    // The order in which Ollama lists them (by date) changes nothing.
    server.routes = ollamaRoutes({ b: {}, a: {} });
    // In steps: the next question is planned when the last is answered, and time that has passed before is lost on it.
    const passing = (check: () => void) =>
      until(() => {
        clock.advance(1000);
        check();
      });
    const asked = server.count('/api/tags');
    await passing(() => expect(server.count('/api/tags')).toBeGreaterThan(asked + 1));
    expect(node().descriptor_hash).toBe(before.descriptor_hash);
    server.routes = ollamaRoutes({ a: {}, b: {}, c: {} });
    await passing(() => expect(node().descriptor_hash).not.toBe(before.descriptor_hash));
    expect(node().descriptor).toMatchObject({
      name: 'box',
      backends: [
        {
          id: 'o',
          kind: 'ollama',
          version: '0.12.3',
          pool: 'o',
          models: [{ id: 'a' }, { id: 'b' }, { id: 'c' }],
        },
      ],
      pools: [{ id: 'o', capacity: 4, capacity_from: 'default' }],
    });
  });

  test('new settings keep what they do not change', async () => {
    const kept = await serve(vllmRoutes('m'));
    const dropped = await serve(vllmRoutes('n'));
    const { set } = await open({
      backends: [
        { url: kept.url, id: 'kept' },
        { url: dropped.url, id: 'dropped' },
      ],
    });
    await until(() => expect(set.settled).toBe(true));
    const proofs = kept.count('/v1/chat/completions');
    await set.reconfigure(readConfig({ flags: { backends: [{ url: kept.url, id: 'kept' }] } }));
    expect(set.states().map(({ id }) => id)).toEqual(['kept']);
    expect(kept.count('/v1/chat/completions')).toBe(proofs);
  });
});

describe('stopping', () => {
  test('leaves no timer', async () => {
    const server = await serve(vllmRoutes('m'));
    const { set, clock, healthy } = await open({}, [server.port]);
    await healthy();
    await set.stop();
    expect(clock.pending).toBe(0);
  });

  test('during the first look ends it, and leaves no timer either', async () => {
    const silent = await serve({});
    silent.fallback = { hang: true };
    const { set, clock } = build({}, [silent.port]);
    const started = set.start();
    await until(() => expect(silent.asked).not.toEqual([]));
    await set.stop();
    await started;
    expect(clock.pending).toBe(0);
  });

  test('during a reload lets nothing new begin', async () => {
    const before = await serve(vllmRoutes('m'));
    const after = await serve(vllmRoutes('n'));
    const { set, clock, healthy } = await open({ backends: [{ url: before.url, id: 'before' }] });
    await healthy();
    const reload = () =>
      set.reconfigure(readConfig({ flags: { backends: [{ url: after.url, id: 'after' }] } }));
    const reloaded = reload(); // waits for the probe of the one that goes
    await set.stop();
    await Promise.all([reloaded, reload()]);
    expect(set.states().map(({ id }) => id)).not.toContain('after');
    expect(clock.pending).toBe(0);
    expect(after.asked).toEqual([]);
  });
});
