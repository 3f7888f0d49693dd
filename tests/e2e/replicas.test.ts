import type { ExplainView, JobView, NodeView } from '@flotilla/protocol';
import type { ServerResponse } from 'node:http';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { NATS_URL } from '../support/nats.ts';
import { type Proxy, startProxy } from '../support/proxy.ts';
import { DONE, SSE, type ScriptedBackend, chatAnswer, chatChunk } from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';
import { type Plane, type TestNode, type World, openWorld } from '../support/world.ts';

/** Two replicas on one PostgreSQL and one NATS: the node is linked to one, the client calls the other. */
/** A node fences itself after nearly three of them: time to dial again, on a busy machine. */
const HEARTBEAT_MS = 2500;

describe.skipIf(NATS_URL === undefined)('two replicas (they need PostgreSQL and NATS)', () => {
  let world: World;
  let first: Plane;
  let second: Plane;
  /** From the node to the replica that it is linked to, and from the replicas to NATS. */
  let way: Proxy;
  let bus: Proxy;
  let backend: ScriptedBackend;
  let node: TestNode;

  beforeAll(async () => {
    const { hostname, port } = new URL(NATS_URL!);
    bus = await startProxy({ host: hostname, port: Number(port || 4222) });
    world = await openWorld({ heartbeat_ms: HEARTBEAT_MS, nats_url: `nats://127.0.0.1:${bus.port}` });
    first = world.plane;
    second = await world.replica();
    backend = await world.backend((_request, response) => void response.end(chatAnswer('Hello')));
    way = await world.proxy(second.port);
    node = await world.node({
      name: 'home',
      control_url: `http://127.0.0.1:${way.port}`,
      backends: [{ url: backend.url, slots: 2 }],
    });
    await until('the first knows of the node', async () => (await stateOn(first)) === 'online');
  });
  afterAll(async () => {
    await world.close();
    await bus.close();
  });
  beforeEach(() => {
    backend.requests.length = 0;
    backend.answer = (_request, response) => void response.end(chatAnswer('Hello'));
  });

  /** A request whose backend waits. */
  async function held(plane: Plane) {
    let waiting: ServerResponse | undefined;
    backend.answer = (_request, response) => void (waiting = response);
    const reply = plane.chat({});
    return { waiting: await until('the backend has it', () => waiting), reply };
  }
  const stateOn = async (plane: Plane) =>
    (await plane.get<{ data: { state: string }[] }>('/api/v1/nodes')).data[0]?.state;
  const reserved = async () =>
    (await second.get<{ pools: { reserved: number }[] }>(`/api/v1/nodes/${node.id}`)).pools[0]!.reserved;

  test('a whole answer comes from a node of the other, as it was sent', async () => {
    const answer = chatAnswer(`Grüße ${'x'.repeat(300_000)} 12345678901234567890`);
    backend.answer = (_request, response) => {
      response.writeHead(200, { 'content-type': 'application/json' });
      response.end(answer);
    };
    const reply = await first.chat({ messages: [{ role: 'user', content: 'y'.repeat(700_000) }] });
    expect(reply.headers.get('x-flotilla-node')).toBe('home');
    expect(await reply.text()).toBe(answer);
    expect(backend.requests[0]!.body.byteLength).toBeGreaterThan(700_000);
    const { data } = await first.get<{ data: { outcome: string; node: string; prompt_tokens: number }[] }>(
      '/api/v1/usage?limit=1',
    );
    expect(data).toMatchObject([{ outcome: 'succeeded', node: node.id, prompt_tokens: 3 }]);
  });

  test('a stream comes byte for byte, event by event', async () => {
    const events = Array.from({ length: 200 }, (_, index) => chatChunk(`${index} ä${'z'.repeat(5000)}`));
    backend.answer = async (_request, response) => {
      response.writeHead(200, SSE);
      for (const event of events) response.write(event);
      response.end(DONE);
    };
    expect(await (await first.chat({ stream: true })).text()).toBe(events.join('') + DONE);
  });

  test('a client that leaves frees the backend and the slot at once, in each phase', async () => {
    for (const phase of ['before the first byte', 'in mid-stream']) {
      backend.requests.length = 0;
      backend.answer = (_request, response) => {
        if (phase === 'before the first byte') return;
        response.writeHead(200, SSE);
        response.write(chatChunk('on'));
      };
      const leaving = new AbortController();
      const reply = first.chat({ stream: true }, { signal: leaving.signal });
      reply.catch(() => undefined);
      await until('the backend has it', () => backend.requests.length === 1);
      if (phase === 'in mid-stream') await (await reply).body!.getReader().read();
      const left_ms = performance.now();
      leaving.abort();
      await until('the backend is free', () => backend.requests[0]!.aborted_ms !== null);
      expect(backend.requests[0]!.aborted_ms! - left_ms).toBeLessThan(500);
      await until('the slot is free', async () => (await reserved()) === 0);
    }
  });

  test('keys whose clients are at different replicas are served in turns', async () => {
    const order: string[] = [];
    const release: (() => void)[] = [];
    backend.answer = (request, response) => {
      order.push((JSON.parse(request.body.toString()) as { user: string }).user);
      release.push(() => response.end(chatAnswer('done')));
    };
    const keys = [await world.key({ name: 'a' }), await world.key({ name: 'b' })];
    const replies = [first.chat({ user: 'a' }), second.chat({ user: 'b' })];
    await until('both slots are taken', () => release.length === 2);
    // Each key has its place at the head of the line, and its second one a step behind.
    for (const [index, plane] of [first, second, first, second].entries()) {
      replies.push(plane.chat({ user: String(index) }, { key: keys[index % 2]! }));
      await until('it waits', async () => {
        const { data } = await plane.get<{ data: { state: string }[] }>('/api/v1/jobs?state=queued');
        return data.length > 0 && data.length >= Math.floor(index / 2) + 1;
      });
    }
    for (let at = 0; at < 6; at++) {
      await until('one runs', () => release.length > at);
      release[at]!();
    }
    for (const reply of replies) expect((await reply).status).toBe(200);
    const by_key = order.slice(2).map((user) => Number(user) % 2);
    expect([by_key[0]! + by_key[1]!, by_key[2]! + by_key[3]!]).toEqual([1, 1]);
  });

  test('a stream whose node comes back through the other replica goes on, and the client notices nothing', async () => {
    let write: (text: string) => void = () => undefined;
    let end: () => void = () => undefined;
    backend.answer = (_request, response) => {
      response.writeHead(200, SSE);
      write = (text) => void response.write(text);
      end = () => response.end(DONE);
      write(chatChunk('one'));
    };
    for (const to of [first, second]) {
      const reply = await first.chat({ stream: true });
      const reader = reply.body!.pipeThrough(new TextDecoderStream()).getReader();
      let seen = (await reader.read()).value!;
      way.cut();
      way.lead(to.port);
      way.restore();
      write(chatChunk('two'));
      await until(`it is linked to the ${to === first ? 'first' : 'second'}`, async () => {
        return (await to.linked()).includes(node.id);
      });
      write(chatChunk('three'));
      end();
      for (let part = await reader.read(); !part.done; part = await reader.read()) seen += part.value;
      expect(seen).toBe(chatChunk('one') + chatChunk('two') + chatChunk('three') + DONE);
      await until('nothing is held', async () => {
        const view = await to.get<{ pools: { reserved: number }[] }>(`/api/v1/nodes/${node.id}`);
        return view.pools[0]!.reserved === 0;
      });
    }
  });

  test('a key that is made, or revoked, on one counts on the other within a second', async () => {
    const { id, key } = await first.send<{ id: string; key: string }>('POST', '/api/v1/keys', {
      name: 'new',
    });
    const status = async () => (await second.chat({}, { key })).status;
    await until('the other takes it', async () => (await status()) === 200, 1000);
    await first.send('DELETE', `/api/v1/keys/${id}`);
    await until('the other refuses it', async () => (await status()) !== 200, 1000);
    expect([401, 403]).toContain(await status());
  });

  test('a detached job that one accepts is done by a node of the other, and read, watched and cancelled on either', async () => {
    backend.answer = (_request, response) => {
      response.writeHead(200, { 'content-type': 'application/json' });
      response.end(chatAnswer('detached'));
    };
    const submit = (plane: Plane) =>
      plane.send<{ id: string }>('POST', '/api/v1/jobs', {
        kind: 'inference',
        model: 'scripted',
        request: { messages: [{ role: 'user', content: 'Hello' }] },
      });
    const stateOf = async (plane: Plane, id: string) =>
      (await plane.get<{ state: string }>(`/api/v1/jobs/${id}`)).state;
    for (const accepting of [first, second]) {
      const began_ms = performance.now();
      const { id } = await submit(accepting);
      await until('it has succeeded', async () => (await stateOf(first, id)) === 'succeeded');
      // By a hint: the look behind it comes every 500 ms.
      expect(performance.now() - began_ms).toBeLessThan(450);
      const result = await second.get<{ result: { choices: unknown[] } }>(`/api/v1/jobs/${id}`);
      expect(JSON.stringify(result)).toContain('detached');
    }
    backend.requests.length = 0;
    backend.answer = () => undefined;
    const { id } = await submit(first);
    await until('its backend has it', () => backend.requests.length === 1);
    await until('it runs', async () => (await stateOf(second, id)) === 'running');
    const left_ms = performance.now();
    await first.send('POST', `/api/v1/jobs/${id}/cancel`, {});
    await until('its backend is free', () => backend.requests[0]!.aborted_ms !== null);
    expect(backend.requests[0]!.aborted_ms! - left_ms).toBeLessThan(500);
    expect(await stateOf(second, id)).toBe('cancelled');
  });

  test('either shows a node as the one does that has its link, and an open request as the one that has its client', async () => {
    const { waiting, reply } = await held(second);
    const shown = async (plane: Plane) => plane.get<NodeView>(`/api/v1/nodes/${node.id}`);
    const there = await shown(second);
    expect(there.pools[0]!.reserved).toBe(1);
    const { why, last_seen_at, link_rtt_ms: _rtt, ...here } = await shown(first);
    expect(there).toMatchObject(here);
    expect(why.last_beat_ms_ago).toBeLessThan(2 * HEARTBEAT_MS);
    expect(Date.now() - Date.parse(last_seen_at!)).toBeLessThan(2 * HEARTBEAT_MS);
    const { data } = await first.get<{ data: NodeView[] }>('/api/v1/nodes');
    expect(data.map(({ pools }) => pools[0]!.reserved)).toEqual([1]);
    const open = await until('the first shows the request', async () => {
      const { data } = await first.get<{ data: JobView[] }>('/api/v1/jobs?state=running');
      return data.find(({ attached }) => attached);
    });
    const explanation = await first.get<ExplainView>(`/api/v1/jobs/${open.id}/explain`);
    expect(explanation).toMatchObject({ summary: 'It is running on home.', nodes: [{ verdict: 'has it' }] });
    waiting.end(chatAnswer('Hello'));
    expect((await reply).status).toBe(200);
  });

  test('a node is asked for its models on either', async () => {
    const { id } = await first.send<{ id: string }>('POST', `/api/v1/nodes/${node.id}/model-discoveries`, {});
    const found = await until('the answer is there', async () => {
      const view = await second.get<{ state: string }>(`/api/v1/model-discoveries/${id}`);
      return view.state !== 'pending' && view.state !== 'running' ? view : undefined;
    });
    expect(found.state).toBe('completed');
    expect(JSON.stringify(await first.get(`/api/v1/nodes/${node.id}/models`))).toContain('scripted');
  });

  test('an operator’s wish that one hears counts on the other', async () => {
    await first.send('POST', `/api/v1/nodes/${node.id}/cordon`, {});
    await until('it is cordoned', async () => {
      const view = await second.get<{ cordoned: boolean }>(`/api/v1/nodes/${node.id}`);
      return view.cordoned;
    });
    for (const plane of [first, second]) expect((await plane.chat({})).status).toBe(503);
    await second.send('POST', `/api/v1/nodes/${node.id}/uncordon`, {});
    await until('the first serves again', async () => (await first.chat({})).status === 200, 2000);
  });

  test('an operator ends a request on the replica that does not have its client, and hears it where that one cannot be asked', async () => {
    backend.answer = () => undefined;
    // By a node of its own, for the bus goes away meanwhile.
    const reply = second.chat({});
    await until('the backend has it', () => backend.requests.length === 1);
    const open = await until('the other shows it', async () => {
      const { data } = await first.get<{ data: { id: string; attached: boolean }[] }>(
        '/api/v1/jobs?state=running',
      );
      return data.find(({ attached }) => attached);
    });
    const cancel = () => first.send('POST', `/api/v1/jobs/${open.id}/cancel`, {});
    bus.cut();
    await expect(cancel()).rejects.toThrow(/503.*does not answer now; try again/);
    bus.restore();
    await until('it can be asked', () =>
      cancel()
        .catch(() => false)
        .then((done) => done !== false),
    );
    expect((await reply).status).toBe(499);
    await until('the backend is free', () => backend.requests[0]!.aborted_ms !== null);
    // Its answer, an error, waits for no record; until that is committed, a second cancel hears that it has just ended.
    await until('the record says so, too', () =>
      cancel().then(
        (job) => (job as { state: string }).state === 'cancelled',
        () => false,
      ),
    );
  });

  test('without NATS each serves its own nodes and says so; with it again all is as before', async () => {
    const readiness = async (plane: Plane) => (await plane.get<{ status: string }>('/readyz')).status;
    bus.cut();
    for (const plane of [first, second]) {
      await until('it says that it is degraded', async () => (await readiness(plane)) === 'degraded');
    }
    expect((await second.chat({})).status).toBe(200);
    const waiting = first.chat({});
    bus.restore();
    for (const plane of [first, second]) {
      await until('it is ready', async () => (await readiness(plane)) === 'ready');
    }
    expect((await waiting).status).toBe(200);
  });

  test('a stream goes on when the bus has been away, twice within the time that a stream waits', async () => {
    let write: (text: string) => void = () => undefined;
    let end: () => void = () => undefined;
    backend.answer = (_request, response) => {
      response.writeHead(200, SSE);
      write = (text) => void response.write(text);
      end = () => void response.end(DONE);
      write(chatChunk('0'));
    };
    const reply = await first.chat({ stream: true });
    const reader = reply.body!.pipeThrough(new TextDecoderStream()).getReader();
    let seen = (await reader.read()).value!;
    const readiness = async (plane: Plane) => (await plane.get<{ status: string }>('/readyz')).status;
    for (const number of ['1', '2']) {
      bus.cut();
      for (const plane of [first, second]) {
        await until('it says that it is degraded', async () => (await readiness(plane)) === 'degraded');
      }
      write(chatChunk(number));
      bus.restore();
      seen += (await reader.read()).value!;
    }
    end();
    for (let part = await reader.read(); !part.done; part = await reader.read()) seen += part.value;
    expect(seen).toBe(['0', '1', '2'].map((text) => chatChunk(text)).join('') + DONE);
  });

  test('kill -9 of the replica that a node is linked to: its stream goes on through the other', async () => {
    let write: (text: string) => void = () => undefined;
    let end: () => void = () => undefined;
    backend.answer = (_request, response) => {
      response.writeHead(200, SSE);
      write = (text) => void response.write(text);
      end = () => void response.end(DONE);
      write(chatChunk('one'));
    };
    const reply = await first.chat({ stream: true });
    const reader = reply.body!.pipeThrough(new TextDecoderStream()).getReader();
    let seen = (await reader.read()).value!;
    second.program().signal('SIGKILL');
    way.lead(first.port);
    write(chatChunk('two'));
    await until('it is linked to the first', async () => (await first.linked()).includes(node.id));
    end();
    for (let part = await reader.read(); !part.done; part = await reader.read()) seen += part.value;
    expect(seen).toBe(chatChunk('one') + chatChunk('two') + DONE);
    await until('the dead one is cleared away', () => first.output().includes('was cleared away'));
  });
});
