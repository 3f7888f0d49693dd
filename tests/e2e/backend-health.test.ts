import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { ServerResponse } from 'node:http';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Proxy } from '../support/proxy.ts';
import { chatAnswer, type Handler, type ScriptedBackend } from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';
import { type TestNode, type World, openWorld } from '../support/world.ts';

/** A backend's health is a thing of its own: the node lives on, and what it cannot serve is refused with the reason. */
let world: World;
beforeAll(async () => {
  // A cut and the time to reconnect must fit into a lease of 3 H.
  world = await openWorld({ heartbeat_ms: 2000, env: { FLOTILLA_LOG_LEVEL: 'info' } });
}, 60_000);
afterAll(() => world.close());

const sound: Handler = (_request, response) => {
  response.setHeader('content-type', 'application/json');
  response.end(chatAnswer('well'));
};
const fails = (response: ServerResponse, status: number, message: string) => {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify({ error: { message } }));
};

/** `<status> <code>` of one request, and how long it is to be waited for. */
async function ask(model: string): Promise<{ told: string; retry_ms: number; text: string }> {
  const reply = await world.plane.chat({ model });
  const text = await reply.text();
  const { error } = JSON.parse(text) as { error?: { code: string } };
  const retry_ms = Number(reply.headers.get('retry-after-ms') ?? Number.NaN);
  const retry_s = Number(reply.headers.get('retry-after') ?? Number.NaN);
  if (!Number.isNaN(retry_ms)) expect(retry_s).toBe(Math.ceil(retry_ms / 1000));
  return { told: `${reply.status} ${error?.code ?? 'ok'}`, retry_ms, text };
}

async function refusedForNow(model: string): Promise<void> {
  const { told, retry_ms, text } = await ask(model);
  expect(told).toBe('503 no_capacity');
  expect(retry_ms).toBeGreaterThanOrEqual(500);
  expect(retry_ms).toBeLessThanOrEqual(60_000);
  expect(text).toContain('retry_after_ms');
}

const served = (model: string) =>
  until(`${model} is served`, async () => (await ask(model)).told === '200 ok');

describe('a backend that goes away', () => {
  let backend: ScriptedBackend;
  let node: TestNode;

  beforeAll(async () => {
    backend = await world.backend(sound, ['comes-and-goes']);
    node = await world.node({ name: 'box', backends: [{ url: backend.url, slots: 2 }] });
  }, 60_000);

  it('leaves its node online, which says which probe fails; its models wait for it, politely refused', async () => {
    expect((await ask('comes-and-goes')).told).toBe('200 ok');
    await backend.stop();
    // The first request to meet it finds it out; nobody waits for a beat or a probe.
    await until('it is known', async () => (await ask('comes-and-goes')).told === '503 no_capacity');
    const view = await node.view();
    expect(view).toMatchObject({ state: 'online', health: 'down', why: { missed_beats: 0 } });
    expect(view.why.summary).toMatch(/is down/);
    expect(view.why.failing_probes).toEqual([
      expect.stringMatching(/is down: GET \/v1\/models: the connection was refused/),
    ]);
    await refusedForNow('comes-and-goes');
    expect(backend.in_flight).toBe(0);
  });

  it('serves again within a second of the first good probe', async () => {
    const asked = backend.listed_ms.length;
    await backend.start();
    const probed_ms = await until('it is asked for its models', () => backend.listed_ms[asked]);
    await served('comes-and-goes');
    expect(performance.now() - probed_ms).toBeLessThan(1000);
    expect((await node.view()).why.failing_probes).toEqual([]);
  });

  it('answers those who wait for it when it goes', async () => {
    backend.answer = () => undefined;
    const running = [ask('comes-and-goes'), ask('comes-and-goes')];
    await until('its slots are taken', () => backend.in_flight === 2);
    const waiting = [ask('comes-and-goes'), ask('comes-and-goes')];
    await until('they wait', async () => (await openJobs()) === 4);
    await backend.stop();
    for (const reply of await Promise.all([...running, ...waiting])) {
      // Who had three tries before the backend was known to be down is told of those.
      expect(reply.told).toMatch(/^(503 no_capacity|502 attempts_exhausted)$/);
      expect(reply.retry_ms).toBeGreaterThanOrEqual(500);
    }
    expect((await node.view()).state).toBe('online');
    backend.answer = sound;
    await backend.start();
    await served('comes-and-goes');
  });

  it.each<[string, (response: ServerResponse) => void, RegExp]>([
    ['fails', (response) => fails(response, 500, 'no disk'), /status 500/],
    ['answers nonsense', (response) => void response.end('<html>'), /models/],
    ['wants another key', (response) => fails(response, 401, 'key'), /key/],
  ])('is degraded at once and down at the third time when its list %s', async (_what, answer_list, why) => {
    backend.answer_list = answer_list;
    // Asked for at once, because a request failed.
    backend.answer = (_request, response) => fails(response, 500, 'no');
    await ask('comes-and-goes');
    const view = await until('it is down', async () => {
      const now = await node.view();
      return now.backends[0]!.health === 'down' && now;
    });
    expect(view.why.failing_probes[0]).toMatch(why);
    expect(view.state).toBe('online');
    await refusedForNow('comes-and-goes');
    backend.answer = sound;
    backend.answer_list = null;
    await served('comes-and-goes');
  });
});

describe('a backend that lists a model but cannot generate with it', () => {
  it('is down for that model alone, which is told with its failing probe, and serves once it is mended', async () => {
    let mended = false;
    const backend = await world.backend(
      (request, response) => {
        const { model } = JSON.parse(request.body.toString()) as { model: string };
        if (model === 'too-large' && !mended) return fails(response, 500, 'out of memory');
        if (model === 'in-demand' && !mended) return fails(response, 429, 'slow down');
        return sound(request, response);
      },
      ['fits', 'too-large', 'in-demand'],
    );
    const node = await world.node({
      name: 'small',
      backends: [{ url: backend.url, slots: 2, probe: 'generate' }],
      unready: true,
    });
    const view = await until('each model was proved', async () => {
      const now = await node.view();
      const health = Object.fromEntries(
        (now.backends[0]?.models ?? []).map((model) => [model.id, model.health]),
      );
      return (
        health['fits'] === 'healthy' &&
        health['too-large'] === 'down' &&
        health['in-demand'] === 'degraded' &&
        now
      );
    });
    expect(view).toMatchObject({ state: 'online', health: 'healthy', backends: [{ health: 'healthy' }] });
    expect(view.why.failing_probes).toEqual(
      expect.arrayContaining([
        expect.stringMatching(/too-large is down: POST \/chat\/completions: status 500 \(out of memory\)/),
        expect.stringMatching(/in-demand is degraded: POST \/chat\/completions: status 429/),
      ]),
    );
    expect((await ask('fits')).told).toBe('200 ok');
    await refusedForNow('too-large');
    mended = true;
    await served('too-large');
    // Degraded is no reason to refuse where nobody is healthy.
    expect((await ask('in-demand')).told).toBe('200 ok');
  });
});

describe('a daemon whose backend is down from the start', () => {
  it('says so, gets no work, and offers the models as soon as they are there', async () => {
    const backend = await world.backend(sound, ['late']);
    await backend.stop();
    const node = await world.node({ name: 'early', backends: [{ url: backend.url }], unready: true });
    const view = await until('it is online', async () => {
      const now = await node.view();
      return now.state === 'online' && now;
    });
    expect(view).toMatchObject({ health: 'down', backends: [{ health: 'down', models: [] }] });
    expect(view.why.failing_probes).toHaveLength(1);
    expect((await ask('late')).told).toBe('404 model_not_found');
    const { url } = JSON.parse(await readFile(join(node.state_dir, 'status.json'), 'utf8')) as {
      url: string;
    };
    // Its own main thread hears of the link a moment later than the control plane.
    const ready = await until('it knows that it is connected', async () => {
      const reply = await fetch(`${url}/readyz`);
      const { reasons } = (await reply.json()) as { reasons: string[] };
      return reasons.length === 1 && { status: reply.status, reasons };
    });
    expect(ready).toEqual({ status: 503, reasons: ['Every backend is down.'] });
    expect(node.output()).toMatch(/backend is down/i);
    await backend.start();
    await served('late');
    expect((await fetch(`${url}/readyz`)).status).toBe(200);
  });
});

describe('those who wait for the last node that can serve them', () => {
  let backend: ScriptedBackend;
  let link: Proxy;
  let node: TestNode;
  /** Answers the request that is with the backend. */
  let finish: () => void;

  beforeAll(async () => {
    backend = await world.backend(
      (request, response) => {
        finish = () => void sound(request, response);
      },
      ['lonely'],
    );
    link = await world.proxy(world.plane.port);
    node = await world.node({
      name: 'lonely',
      backends: [{ url: backend.url, slots: 1 }],
      control_url: link.url,
    });
  }, 60_000);

  /** One runs, two wait. */
  async function queue(): Promise<Promise<Awaited<ReturnType<typeof ask>>>[]> {
    const all = [ask('lonely')];
    await until('it runs', () => backend.in_flight === 1);
    all.push(ask('lonely'), ask('lonely'));
    await until('they wait', async () => (await openJobs()) === 3);
    return all;
  }

  it('are served when it was suspect and returns', async () => {
    const all = await queue();
    link.cut();
    await until('it is suspect', async () => (await node.view()).state === 'suspect');
    all.push(ask('lonely'));
    await until('one more waits', async () => (await openJobs()) === 4);
    link.restore();
    for (const _reply of all) {
      const before = backend.requests.length;
      finish();
      await until(
        'the next one runs, or none is left',
        async () => backend.requests.length > before || (await openJobs()) === 0,
      );
    }
    for (const reply of await Promise.all(all)) expect(reply.told).toBe('200 ok');
  });

  it('are told so at once when it is cordoned, and the one that runs goes on', async () => {
    const [running, ...waiting] = await queue();
    await world.plane.send('POST', `/api/v1/nodes/${node.id}/cordon`);
    for (const reply of await Promise.all(waiting)) expect(reply.told).toBe('503 no_capacity');
    expect(backend.in_flight).toBe(1);
    await world.plane.send('POST', `/api/v1/nodes/${node.id}/uncordon`);
    finish();
    expect((await running!).told).toBe('200 ok');
  });

  it('are told so when it is lost', async () => {
    const all = await queue();
    node.program().signal('SIGKILL');
    for (const reply of await Promise.all(all)) {
      expect(reply.told).toBe('503 no_capacity');
      expect(reply.retry_ms).toBeGreaterThanOrEqual(500);
    }
    expect((await node.view()).state).toBe('offline');
  });
});

async function openJobs(): Promise<number> {
  const { data } = await world.plane.get<{ data: { finished_at: string | null }[] }>(
    '/api/v1/jobs?limit=100',
  );
  return data.filter((job) => job.finished_at === null).length;
}
