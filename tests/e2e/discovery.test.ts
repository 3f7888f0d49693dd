import { mkdtemp, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { DiscoveryView, NodeModelsView } from '@flotilla/protocol';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../packages/cli/src/testing/command.ts';
import { flotilla } from '../support/program.ts';
import { enrolRawNode, type RawLink, type RawNode, rawRegistration } from '../support/raw-node.ts';
import { chatAnswer, type Handler, type ScriptedBackend } from '../support/scripted-backend.ts';
import { startScriptedPlane } from '../support/scripted-plane.ts';
import { until } from '../support/until.ts';
import { type TestNode, type World, openWorld } from '../support/world.ts';

/** A request for a node's models ends with its lists or with the reason, whatever is lost on the way. */
const DEADLINE_MS = 4000;
const BEAT_MS = 200;
const CAN = { features: ['model_discovery'] };
let world: World;
beforeAll(async () => {
  world = await openWorld({ env: { FLOTILLA_DISCOVERY_TIMEOUT_MS: String(DEADLINE_MS) } });
}, 60_000);
afterAll(() => world.close());

const sound: Handler = (_request, response) => {
  response.setHeader('content-type', 'application/json');
  response.end(chatAnswer('well'));
};

const ask = (node: string, backend?: string) =>
  world.plane.send<DiscoveryView>('POST', `/api/v1/nodes/${node}/model-discoveries`, backend && { backend });
const look = (id: string, query = '') =>
  world.plane.get<DiscoveryView>(`/api/v1/model-discoveries/${id}${query}`);
const lists = (node: string) => world.plane.get<NodeModelsView>(`/api/v1/nodes/${node}/models`);

/** Waits for its end, as clients do. */
async function ended(asked: DiscoveryView): Promise<DiscoveryView> {
  let now = asked;
  while (now.finished_at === null) now = await look(now.id, `?wait_ms=5000&stage=${now.stage}`);
  return now;
}

/** A raw node that can be asked, and does not fall silent. */
async function askable(
  name: string,
  where = world,
): Promise<RawNode & { link: () => Promise<RawLink>; back: (link: RawLink) => void }> {
  const node = await enrolRawNode(where, name);
  const back = (link: RawLink) => {
    link.send(rawRegistration(name, CAN));
    void link.next('node.registered').then(() => link.beats(BEAT_MS));
  };
  const link = async () => {
    const joined = await node.join(CAN);
    joined.beats(BEAT_MS);
    return joined;
  };
  return { ...node, link, back };
}
const told = (request: string, ...models: string[]) => ({
  type: 'discovery.result',
  request,
  results: [
    {
      outcome: 'listed',
      backend: 'backend',
      kind: 'raw',
      version: '1',
      models: models.map((id) => ({ id })),
      models_total: models.length,
    },
  ],
});
const ofRequest = (id: string) => (message: { request: string }) => message.request === id;

describe('a node with its model server', () => {
  let models: string[];
  let backend: ScriptedBackend;
  let node: TestNode;
  beforeAll(async () => {
    models = ['first'];
    backend = await world.backend(sound, models);
    node = await world.node({ name: 'box', backends: [{ url: backend.url }] });
  }, 60_000);

  it('tells what it has this moment, within a second, and offers it from then on', async () => {
    models.push('just-pulled');
    const began_ms = performance.now();
    const asked = await ask(node.id);
    expect(asked).toMatchObject({ node: node.id, backend: null, state: 'pending', finished_at: null });
    expect(Date.parse(asked.expires_at) - Date.parse(asked.created_at)).toBe(DEADLINE_MS);
    const done = await ended(asked);
    expect(performance.now() - began_ms).toBeLessThan(1000);
    expect(done).toMatchObject({
      id: asked.id,
      state: 'completed',
      reason: null,
      message: null,
      backends: [{ kind: 'openai', reason: null, models: [{ id: 'first' }, { id: 'just-pulled' }] }],
    });
    // Its descriptor was told anew before the result.
    expect((await world.plane.chat({ model: 'just-pulled' })).status).toBe(200);
    expect((await lists(node.id)).backends).toMatchObject([
      { models: [{ id: 'first' }, { id: 'just-pulled', allowed: true }], models_total: 2 },
    ]);
  });

  it('is asked once by any number of callers, who all get the same request', async () => {
    const release = Promise.withResolvers<void>();
    const regular = backend.listed_ms.length;
    backend.answer_list = (response) =>
      void release.promise.then(() => {
        response.setHeader('content-type', 'application/json');
        response.end(JSON.stringify({ object: 'list', data: models.map((id) => ({ id })) }));
      });
    const asked = await Promise.all([ask(node.id), ask(node.id), ask(node.id)]);
    expect(new Set(asked.map(({ id }) => id)).size).toBe(1);
    await until('its server is asked', () => backend.listed_ms.length > regular);
    // One more, in the middle of it.
    expect((await ask(node.id)).id).toBe(asked[0]!.id);
    release.resolve();
    expect((await ended(asked[0]!)).state).toBe('completed');
    backend.answer_list = null;
    expect(backend.listed_ms.length - regular).toBe(1);
    expect((await ask(node.id)).id).not.toBe(asked[0]!.id);
  });

  it('is refused by name where it has no such backend', async () => {
    await expect(ask(node.id, 'lm-studio')).rejects.toThrow(
      /404.*has no backend \\"lm-studio\\"; it has 127/,
    );
  });

  it('says which list it could not get, why, at which stage, and what to do; the last good list stays', async () => {
    const before = (await lists(node.id)).backends;
    const why = async () => {
      const done = await ended(await ask(node.id));
      const [only] = done.backends;
      expect(only?.models).toBeNull();
      expect(done.message).toContain(`'models' under its entry of 'backends' in the node.yaml of box`);
      return `${done.state} ${done.reason} ${done.stage}: ${done.message}`;
    };
    backend.answer_list = (response) => void response.writeHead(401).end('{}');
    expect(await why()).toMatch(/^failed not_authorised (identifying|listing): .*status 401.*'api_key'/);
    backend.answer_list = () => undefined;
    expect(await why()).toMatch(/^timed_out timed_out (identifying|listing): .*did not (list|say)/);
    backend.answer_list = null;
    await backend.stop();
    expect(await why()).toMatch(/^failed backend_down connecting: .*refused.*Look after it/);
    const shown = (await lists(node.id)).backends;
    expect(shown.map(({ models, discovered_at }) => ({ models, discovered_at }))).toEqual(
      before.map(({ models, discovered_at }) => ({ models, discovered_at })),
    );
    await backend.start();
    await until('it serves again', async () => (await node.view()).health === 'healthy');
  });

  it('is told in words on the command line, with the age of a list', async () => {
    const env = { FLOTILLA_URL: world.plane.url, FLOTILLA_API_KEY: world.plane.admin_key };
    const good = await run(['models', 'discover', 'box'], env);
    expect(good.stderr).toBe(
      good.stderr
        .split('\n')
        .filter((line) => line === '' || line.startsWith('box: '))
        .join('\n'),
    );
    expect(good).toMatchObject({ code: 0, stdout: expect.stringMatching(/openai.*just-pulled/s) });
    const last = await run(['nodes', 'models', 'box'], env);
    expect(last).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/just-pulled .*list from (now|\d)/),
    });
    await backend.stop();
    const bad = await run(['models', 'discover', 'box', '--json'], env);
    expect(bad.code).toBe(1);
    expect(JSON.parse(bad.stdout)).toMatchObject({ state: 'failed', reason: 'backend_down' });
    const words = await run(['models', 'discover', 'box'], env);
    expect(words).toMatchObject({ code: 1, stdout: expect.stringContaining('no list: backend_down') });
    expect(words.stderr).toMatch(/error: .* on box gave no list .*node.yaml of box/);
  }, 60_000);

  it('that is offline says so at once, and its last list is served with its age', async () => {
    node.program().signal('SIGKILL');
    await until('it is offline', async () => (await node.view()).state === 'offline');
    const asked = await ask(node.id);
    expect(asked).toMatchObject({ state: 'failed', reason: 'offline', stage: 'pending', backends: [] });
    expect(asked.message).toMatch(/box is not connected.*flotilla nodes models box/);
    expect(await look(asked.id)).toMatchObject({ state: 'failed', reason: 'offline' });
    const { state, backends } = await lists(node.id);
    expect(state).toBe('offline');
    expect(backends).toMatchObject([{ models: [{ id: 'first' }, { id: 'just-pulled' }] }]);
    expect(backends[0]!.age_ms).toBeGreaterThan(0);
  });
});

describe('a node that never told a list', () => {
  it('has none, which is told from an empty one, online and offline', async () => {
    const node = await askable('silent');
    const link = await node.link();
    const none = [
      { backend: 'backend', models: null, models_total: null, discovered_at: null, age_ms: null },
    ];
    expect((await lists(node.id)).backends).toMatchObject(none);
    const asked = await ask(node.id);
    link.send(told(asked.id));
    expect(await ended(asked)).toMatchObject({ state: 'completed', backends: [{ models: [] }] });
    expect((await lists(node.id)).backends).toMatchObject([{ models: [], models_total: 0 }]);
    link.close();

    const unheard = await enrolRawNode(world, 'never-connected');
    expect(await ask(unheard.id)).toMatchObject({ state: 'failed', reason: 'offline' });
    expect(await lists(unheard.id)).toMatchObject({ backends: [] });
  });

  it('that is too old to be asked is not waited for', async () => {
    const node = await enrolRawNode(world, 'old');
    await node.join();
    const asked = await ask(node.id);
    expect(asked).toMatchObject({ state: 'failed', reason: 'unsupported' });
    expect(asked.message).toMatch(/Upgrade Flotilla there/);
  });

  it('that knows no model server fails, and says how to name one', async () => {
    const node = await world.node({ name: 'bare', backends: [], unready: true });
    await until('it is online', async () => (await node.view()).state === 'online', 30_000);
    const done = await ended(await ask(node.id));
    expect(done).toMatchObject({ state: 'failed', reason: 'no_backend', backends: [] });
    expect(done.message).toMatch(/bare knows no model server.*node.yaml/);
  }, 60_000);
});

describe('a message that is lost', () => {
  it('was the push: the next beat’s acknowledgement carries the request', async () => {
    const node = await askable('push-lost');
    const link = await node.link();
    const asked = await ask(node.id, 'backend');
    await until('it was pushed', () => link.heard.some(({ type }) => type === 'discovery.request'));
    // As if nothing had been pushed.
    const [request] = (await link.next('node.heartbeat.ack')).discoveries;
    expect(request).toMatchObject({ request: asked.id, backend: 'backend' });
    expect(request!.left_ms).toBeLessThanOrEqual(DEADLINE_MS);
    const ack = link.next('discovery.ack', ofRequest(asked.id));
    link.send(told(asked.id, 'm'));
    expect((await ack).outcome).toBe('accepted');
    expect(await ended(asked)).toMatchObject({ state: 'completed', backends: [{ models: [{ id: 'm' }] }] });
    await link.next('node.heartbeat.ack', ({ discoveries }) => discoveries.length === 0);
  });

  it('was the acknowledgement of the claim, and its link with it: the request is there again on the next one', async () => {
    const node = await askable('claim-lost');
    const first = await node.link();
    const asked = await ask(node.id);
    await until('it was pushed', () => first.heard.some(({ type }) => type === 'discovery.request'));
    first.close();
    await first.closed;
    const second = await node.dial();
    const again = second.next('discovery.request', ofRequest(asked.id));
    node.back(second);
    await again;
    second.send({ type: 'discovery.progress', request: asked.id, stage: 'claimed' });
    await until('it runs', async () => (await look(asked.id)).state === 'running');
    // Claimed, and lost once more: also what runs is asked for again.
    second.close();
    await second.closed;
    const third = await node.dial();
    const once_more = third.next('discovery.request', ofRequest(asked.id));
    node.back(third);
    await once_more;
    third.send(told(asked.id, 'm'));
    expect((await ended(asked)).state).toBe('completed');
  });

  it('was the acknowledgement of the result: it is a duplicate, and changes nothing', async () => {
    const node = await askable('result-twice');
    const link = await node.link();
    const asked = await ask(node.id);
    const outcomes: string[] = [];
    for (const models of [['m'], ['m'], ['other']]) {
      const ack = link.next('discovery.ack', ofRequest(asked.id));
      link.send(told(asked.id, ...models));
      outcomes.push((await ack).outcome);
    }
    expect(outcomes).toEqual(['accepted', 'duplicate', 'duplicate']);
    expect((await lists(node.id)).backends).toMatchObject([{ models: [{ id: 'm' }] }]);
    const never = link.next('discovery.ack', ofRequest('disc_none'));
    link.send(told('disc_none', 'm'));
    expect((await never).outcome).toBe('stale');
  });

  it('makes a real daemon ask its server once, and answer each time', async () => {
    const plane = await startScriptedPlane();
    const backend = await world.backend(sound, ['m']);
    const state_dir = await mkdtemp(join(world.dir, 'daemon-'));
    const settings = { find_backends: false, backends: [{ url: backend.url, probe: 'list' }] };
    await writeFile(join(state_dir, 'node.yaml'), JSON.stringify(settings));
    const daemon = flotilla(
      ['join', plane.url, '--token', 'fle_scripted', '--name', 'box', '--state-dir', state_dir],
      { HOME: world.dir, FLOTILLA_NODE_STATUS_PORT: '0' },
    );
    try {
      const link = await plane.registered(0);
      const listed = backend.listed_ms.length;
      const request = { type: 'discovery.request', request: 'disc_1', left_ms: 10_000 };
      const results = () => link.heard.filter(({ type }) => type === 'discovery.result');
      link.ws.send(JSON.stringify(request));
      link.ws.send(JSON.stringify(request));
      await until('it has told', () => results().length > 0);
      const told_before = results().length;
      link.ws.send(JSON.stringify(request));
      await until('it has told again', () => results().length > told_before);
      for (const result of results()) expect(result).toEqual(results()[0]);
      expect(backend.listed_ms.length - listed).toBe(1);
      link.ws.send(JSON.stringify({ type: 'discovery.ack', request: 'disc_1', outcome: 'accepted' }));
      link.ws.send(JSON.stringify(request));
      await until('it has forgotten, and asks anew', () => backend.listed_ms.length - listed === 2);
    } finally {
      await daemon.stop();
      await plane.close();
    }
  }, 60_000);
});

describe('a deadline', () => {
  it('is the control plane’s alone, and says how far the request came', async () => {
    const node = await askable('slow');
    const link = await node.link();
    const stuck = async (...stages: object[]) => {
      const asked = await ask(node.id);
      for (const stage of stages) link.send({ type: 'discovery.progress', request: asked.id, ...stage });
      const done = await ended(asked);
      const late_ms = Date.parse(done.finished_at!) - Date.parse(asked.expires_at);
      expect(late_ms).toBeGreaterThanOrEqual(0);
      expect(late_ms).toBeLessThan(500);
      const ack = link.next('discovery.ack', ofRequest(asked.id));
      link.send(told(asked.id, 'too-late'));
      expect((await ack).outcome).toBe('stale');
      return `${done.state} ${done.reason} ${done.stage}: ${done.message}`;
    };
    expect(await stuck()).toMatch(/^timed_out timed_out pending: slow did not take the request/);
    expect(await stuck({ stage: 'claimed' }, { stage: 'listing', backend: 'backend' })).toMatch(
      /^timed_out timed_out listing: backend on slow did not list its models/,
    );
    expect((await lists(node.id)).backends).toMatchObject([{ models: null }]);
  });
});

describe('a backend of another version', () => {
  it('has another list: the old one is dropped with the old descriptor', async () => {
    const node = await askable('upgraded');
    const link = await node.link();
    const describe_ = (version: string | undefined, hash: string, kind = 'raw') =>
      link.send({
        type: 'descriptor.update',
        descriptor: {
          name: 'upgraded',
          pools: [{ id: 'pool', capacity: 1, capacity_from: 'config' }],
          backends: [{ id: 'backend', kind, version, pool: 'pool', models: [{ id: 'm' }] }],
        },
        descriptor_hash: hash,
      });
    const discover = async () => {
      const asked = await ask(node.id);
      link.send(told(asked.id, 'm'));
      expect((await ended(asked)).state).toBe('completed');
    };
    const shown = async () => (await lists(node.id)).backends[0]!;
    describe_('1', 'h2');
    await discover();
    // It tells no version while it is down, and is not even known by its kind after a restart: it is no other for that.
    describe_(undefined, 'h3', 'unknown');
    await until('it is described anew', async () => (await kindOf(node.id)) === 'unknown');
    expect((await shown()).models).toMatchObject([{ id: 'm' }]);
    describe_('2', 'h4');
    await until('its list is dropped', async () => (await shown()).models === null);
    // For good, not only from sight.
    describe_('1', 'h5');
    await until('it is described anew', async () => (await shown()).version === '1');
    expect((await shown()).models).toBeNull();
  });
});

describe('a control plane that is started anew', () => {
  let lasting: World;
  beforeAll(async () => {
    // Its start must fit into the deadline.
    lasting = await openWorld({ env: { FLOTILLA_DISCOVERY_TIMEOUT_MS: '60000' } });
  }, 60_000);
  afterAll(() => lasting.close());

  it('still has the request, asks the node for it, and has the list', async () => {
    const node = await askable('patient', lasting);
    const before = await node.link();
    const { plane } = lasting;
    const asked = await plane.send<DiscoveryView>('POST', `/api/v1/nodes/${node.id}/model-discoveries`);
    const look_ = () => plane.get<DiscoveryView>(`/api/v1/model-discoveries/${asked.id}`);
    before.send({ type: 'discovery.progress', request: asked.id, stage: 'claimed' });
    await until('it runs', async () => (await look_()).state === 'running');
    await plane.restart();
    const after = await node.dial();
    const again = after.next('discovery.request', ofRequest(asked.id));
    node.back(after);
    await again;
    after.send(told(asked.id, 'm'));
    await until('it has ended', async () => (await look_()).finished_at !== null);
    expect(await look_()).toMatchObject({
      state: 'completed',
      created_at: asked.created_at,
      backends: [{ models: [{ id: 'm' }] }],
    });
    const shown = await plane.get<NodeModelsView>(`/api/v1/nodes/${node.id}/models`);
    expect(shown.backends).toMatchObject([{ models: [{ id: 'm' }] }]);
  }, 60_000);
});

async function kindOf(id: string): Promise<string | undefined> {
  const { backends } = await world.plane.get<{ backends: { kind: string }[] }>(`/api/v1/nodes/${id}`);
  return backends[0]?.kind;
}
