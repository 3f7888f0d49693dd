import type { JobView, Verdict } from '@flotilla/protocol';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { chatAnswer, chatChunk, SSE, type SeenRequest } from '../support/scripted-backend.ts';
import { enrolRawNode, rawRegistration } from '../support/raw-node.ts';
import { until } from '../support/until.ts';
import { type TestNode, type World, openWorld } from '../support/world.ts';
import type { ServerResponse } from 'node:http';

/**
 * Two nodes in front of one backend each, the first one behind a network that can be cut. Which of them serves is the
 * scheduler's choice, so each test looks who got the request.
 */
let world: World;
const running: { node: number; request: SeenRequest; response: ServerResponse }[] = [];
const nodes: TestNode[] = [];
let proxies: Awaited<ReturnType<World['proxy']>>[] = [];

beforeAll(async () => {
  world = await openWorld({ heartbeat_ms: 2000 });
  proxies = [await world.proxy(world.plane.port), await world.proxy(world.plane.port)];
  for (const index of [0, 1]) {
    const backend = await world.backend(
      (request, response) => void running.push({ node: index, request, response }),
    );
    nodes.push(
      await world.node({
        name: `box-${index}`,
        backends: [{ url: backend.url, slots: 8 }],
        control_url: proxies[index]!.url,
      }),
    );
  }
});
afterAll(() => world.close());
afterEach(async () => {
  for (const proxy of proxies) proxy.restore();
  for (const { response } of running.splice(0)) response.destroy();
  for (const node of nodes) {
    const { child } = node.program();
    node.program().signal('SIGCONT');
    if (child.exitCode !== null || child.signalCode !== null) await node.restart();
    await until('it is back', async () => (await node.view()).state === 'online', 30_000);
  }
}, 60_000);

const next = () => until('a backend has the request', () => running.shift());
const finishWhole = (response: ServerResponse, text: string) => {
  response.setHeader('content-type', 'application/json');
  response.end(chatAnswer(text));
};

describe('kill -9 of a daemon', () => {
  it('during a non-streaming request: the answer comes from another node', async () => {
    const reply = world.plane.chat({});
    const first = await next();
    nodes[first.node]!.program().signal('SIGKILL');
    const second = await next();
    expect(second.node).not.toBe(first.node);
    finishWhole(second.response, 'from the other');
    const answer = await reply;
    expect(answer.status).toBe(200);
    expect(answer.headers.get('x-flotilla-attempts')).toBe('2');
    expect(await answer.text()).toContain('from the other');
    const [row] = await world.usage();
    expect(row).toMatchObject({ outcome: 'succeeded', attempts: 2 });
  });

  it('during a stream: an honest end, an error in the stream and no [DONE]', async () => {
    const reply = await streamOf('partial');
    nodes[reply.node]!.program().signal('SIGKILL');
    const text = reply.seen + (await reply.rest());
    expect(text).toContain('partial');
    expect(text).toContain('"code":"node_lost"');
    expect(text).not.toContain('[DONE]');
    const row = await until('it is recorded', async () =>
      (await world.usage()).find((one) => one.outcome === 'node_lost'),
    );
    expect(row.estimated).toBe(true);
  });
});

describe('a daemon stopped by SIGSTOP', () => {
  it('has its work moved, and what it says when it wakes is refused', async () => {
    const reply = world.plane.chat({});
    const first = await next();
    await until('the control plane knows that it runs', async () => {
      const { data } = await world.plane.get<{ data: { state: string }[] }>('/api/v1/jobs');
      return data[0]?.state === 'running';
    });
    nodes[first.node]!.program().signal('SIGSTOP');
    // The signal is taken by one thread, which then stops the others: until then the link thread answers on.
    await until('it is silent', async () => (await nodes[first.node]!.view()).state !== 'online');
    finishWhole(first.response, 'too late');
    const second = await next();
    expect(second.node).not.toBe(first.node);
    finishWhole(second.response, 'in time');
    expect(await (await reply).text()).toContain('in time');
    nodes[first.node]!.program().signal('SIGCONT');
    await until('it is back', async () => (await nodes[first.node]!.view()).state === 'online');
    const view = await nodes[first.node]!.view();
    expect(view.pools[0]!.reserved).toBe(0);
    expect(
      (await world.usage()).filter((row) => row.attempts === 2 && row.outcome === 'succeeded'),
    ).not.toHaveLength(0);
  });
});

describe('a backend that fails before the first byte', () => {
  it.each([
    ['500', (response: ServerResponse) => response.writeHead(500).end('{"error":"broken"}')],
    ['429', (response: ServerResponse) => response.writeHead(429, { 'retry-after': '1' }).end('{}')],
    ['a reset', (response: ServerResponse) => response.destroy()],
  ])('with %s: another node answers, and the client sees nothing of it', async (what, fail) => {
    const reply = world.plane.chat({});
    const first = await next();
    fail(first.response);
    let second = await next();
    // A kept connection that is reset may only have gone stale, so the daemon asks its backend once more itself.
    if (second.node === first.node) {
      expect(what).toBe('a reset');
      fail(second.response);
      second = await next();
    }
    expect(second.node).not.toBe(first.node);
    finishWhole(second.response, 'well');
    expect((await reply).status).toBe(200);
  });

  it('with a 4xx about the request: the client gets it as it was sent', async () => {
    const reply = world.plane.chat({});
    const { response } = await next();
    const body =
      '{"error":{"message":"context too long","type":"invalid_request_error","code":"context_length_exceeded"}}';
    response.writeHead(400, { 'content-type': 'application/json' }).end(body);
    const answer = await reply;
    expect(answer.status).toBe(400);
    expect(await answer.text()).toBe(body);
  });
});

describe('a detached job that a node has finished in time', () => {
  it('is its result’s, though the node was away and hands it in after the deadline', async () => {
    const RUN_MS = 3000;
    const node = await enrolRawNode(world, 'returning');
    const link = await node.join();
    link.beats(500);
    const submit = (more: object) =>
      world.plane.send<{ id: string }>('POST', '/api/v1/jobs', {
        model: 'returning',
        request: { messages: [] },
        ...more,
      });
    const show = (id: string) => world.plane.get<JobView>(`/api/v1/jobs/${id}`);
    const ended = (id: string) =>
      until('it has ended', async () => {
        const job = await show(id);
        return job.finished_at !== null && job;
      });
    const offered = link.next('job.offer');
    const { id } = await submit({ run_timeout_ms: RUN_MS });
    const { job, attempt } = await offered;
    link.send({ type: 'job.started', job, attempt });
    await until('it runs', async () => (await show(id)).state === 'running');
    const began_ms = performance.now();
    link.close();

    const back = await node.dial();
    const registered = back.next('node.registered');
    const item = { job, attempt, owner: 'store', backend: 'backend', state: 'finished', body_offset: 0 };
    back.send(rawRegistration('returning', { inventory: [{ ...item, stream_offset: 2 }] }));
    back.beats(500);
    const [{ verdict, stream }] = (await registered).verdicts as [Verdict];
    expect(verdict).toBe('keep');
    await until('its time is over', () => performance.now() - began_ms > RUN_MS);
    // Another one's end says that deadlines were looked at since.
    const { id: other } = await submit({ queue_timeout_ms: 1 });
    expect((await ended(other)).error).toMatchObject({ code: 'queue_timeout' });
    expect((await show(id)).state).toBe('running');

    back.frame(2, stream!, 0, JSON.stringify({ status: 200, headers: {} }));
    back.frame(3, stream!, 0, '{}');
    back.frame(4, stream!, 2, Buffer.of(0));
    const usage = { prompt_tokens: 1, completion_tokens: 1, estimated: false };
    back.send({ type: 'job.completed', job, attempt, result: { status: 200, length: 2 }, usage });
    expect(await ended(id)).toMatchObject({ state: 'succeeded' });
    back.close();
  });
});

/** A stream of which the client has the first event. */
async function streamOf(text: string) {
  const pending = world.plane.chat({ stream: true, stream_options: { include_usage: false } });
  const { node, response } = await next();
  response.writeHead(200, SSE);
  response.write(chatChunk(text));
  const answer = await pending;
  const reader = answer.body!.getReader();
  const decoder = new TextDecoder();
  const first = await reader.read();
  const seen = decoder.decode(first.value, { stream: true });
  const rest = async () => {
    let all = '';
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      all += decoder.decode(part.value, { stream: true });
    }
    return all;
  };
  return { node, response, seen, rest };
}
