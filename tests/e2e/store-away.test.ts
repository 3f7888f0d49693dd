import { randomUUID } from 'node:crypto';
import type { ServerResponse } from 'node:http';
import type { ErrorBody, JobView } from '@flotilla/protocol';
import { Flotilla } from '@flotilla/sdk';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { chatAnswer, chatChunk, DONE, type ScriptedBackend, SSE } from '../support/scripted-backend.ts';
import { enrolRawNode, rawRegistration } from '../support/raw-node.ts';
import { testServer } from '../support/store.ts';
import { until } from '../support/until.ts';
import { type TestNode, type World, openWorld } from '../support/world.ts';

/** What clients may rely on when the store of a running control plane goes away: no record, no success. */
describe.skipIf(testServer === undefined)(
  'the store goes away (needs PostgreSQL: FLOTILLA_TEST_DATABASE_URL)',
  () => {
    let world: World;
    let node: TestNode;
    let quick: ScriptedBackend;
    const held: ServerResponse[] = [];
    beforeAll(async () => {
      world = await openWorld({ cuttable_store: true });
      quick = await world.backend(
        (_request, response) => {
          response.setHeader('content-type', 'application/json');
          response.end(chatAnswer('well'));
        },
        ['quick'],
      );
      const slow = await world.backend((_request, response) => void held.push(response), ['slow']);
      node = await world.node({
        name: 'box',
        backends: [
          { url: quick.url, slots: 8 },
          { url: slow.url, slots: 8 },
        ],
      });
    }, 60_000);
    afterAll(() => world.close());
    afterEach(async () => {
      world.store_link!.restore();
      await until('the store is back', ready);
    });

    const ready = async () => (await fetch(`${world.plane.url}/readyz`)).ok;
    const taken = () => until('the backend has it', () => held.shift());
    const told = async (reply: Response) =>
      `${reply.status} ${((await reply.json()) as Partial<ErrorBody>).error?.code ?? 'ok'}`;

    /** A whole answer under way, and what it became. */
    async function whole() {
      const state = { told: '' };
      const id = randomUUID();
      const reply = world.plane.chat({ model: 'slow' }, { headers: { 'x-request-id': id } });
      const over = reply.then(async (answer) => (state.told = await told(answer)));
      const response = await taken();
      const finish = () => {
        response.setHeader('content-type', 'application/json');
        response.end(chatAnswer('well'));
      };
      return { id, state, over, finish };
    }

    /** A stream under way that has sent `first`, and what its client has of it. */
    async function stream() {
      const state = { text: '', ended: false };
      const id = randomUUID();
      const reply = world.plane.chat({ model: 'slow', stream: true }, { headers: { 'x-request-id': id } });
      const response = await taken();
      response.writeHead(200, SSE);
      response.write(chatChunk('first'));
      const body = (await reply).body!.pipeThrough(new TextDecoderStream());
      const over = (async () => {
        for await (const piece of body) state.text += piece;
        state.ended = true;
      })();
      await until('it has the first piece', () => state.text.includes('first'));
      const say = (text: string) => response.write(chatChunk(text));
      const finish = () => response.end(chatChunk('last', 'stop') + DONE);
      return { id, state, over, say, finish };
    }

    /** What is taken in the first second gets no answer, and leaves. */
    const ask = () => world.plane.chat({ model: 'quick' }, { signal: AbortSignal.timeout(300) });
    const refusal = () =>
      until('new work is refused', async () => {
        const reply = await ask().catch(() => undefined);
        expect(reply?.status).not.toBe(200);
        return reply?.status === 503 && reply;
      });
    const settledOf = async (id: string) => (await world.usage()).filter((row) => row.request_id === id);

    it('for a while: ends are held, streams run on, new work is refused; then all of it goes well', async () => {
      const [answer, ending, running] = [await whole(), await stream(), await stream()];
      world.store_link!.cut();
      answer.finish();
      ending.finish();
      const reply = await refusal();
      expect(Number(reply.headers.get('retry-after-ms'))).toBeGreaterThan(0);
      expect(await told(reply)).toBe('503 unavailable');
      expect(await ready()).toBe(false);
      running.say('meanwhile');
      await until('the stream runs on', () => running.state.text.includes('meanwhile'));
      expect(ending.state.text).toContain('last');
      expect(ending.state.text).not.toContain('[DONE]');
      expect([answer.state.told, ending.state.ended]).toEqual(['', false]);
      expect((await node.view()).state).toBe('online');

      world.store_link!.restore();
      await Promise.all([answer.over, ending.over]);
      expect(answer.state.told).toBe('200 ok');
      expect(ending.state.text.endsWith(DONE)).toBe(true);
      for (const { id } of [answer, ending])
        expect(await settledOf(id)).toEqual([expect.objectContaining({ outcome: 'succeeded' })]);
      await until('it is ready by itself', ready);
      running.finish();
      await running.over;
      expect(running.state.text.endsWith(DONE)).toBe(true);
      expect((await world.plane.chat({ model: 'quick' })).status).toBe(200);
    });

    it('while nothing is under way: the next request is refused, not taken and then lost', async () => {
      const seen = quick.requests.length;
      world.store_link!.cut();
      const cut_ms = performance.now();
      // A control plane writes its row every second; from the first failure on it counts.
      await until('it has failed for a second', () => performance.now() - cut_ms > 2500);
      expect(await told(await ask())).toBe('503 unavailable');
      expect(quick.requests).toHaveLength(seen);
    });

    it('a node that wants to come in is told to try again, and the log says which one, and what the store said', async () => {
      const late = await enrolRawNode(world, 'late');
      world.store_link!.cut();
      const link = await late.dial();
      link.send(rawRegistration('late'));
      expect((await link.closed).code).toBe(1013);
      expect(link.heard).toMatchObject([{ type: 'error', code: 'unavailable' }]);
      const headers = { authorization: `Bearer ${late.credential}`, 'content-type': 'application/json' };
      const body = JSON.stringify({ boot_id: 'boot-plain', slots: 1, models: [{ id: 'late' }] });
      const url = `${world.plane.url}/node/v1/register`;
      expect(await told(await fetch(url, { method: 'POST', headers, body }))).toBe('503 unavailable');
      const refusals = await until('both are logged', () => {
        const lines = world.plane.output().split('\n');
        const found = lines.filter((line) => line.includes(late.id) && line.includes('refused'));
        return found.length === 2 && found.map((line) => JSON.parse(line) as object);
      });
      for (const line of refusals)
        expect(line).toMatchObject({
          node: late.id,
          error: { cause: { message: expect.stringMatching(/\S/) } },
        });
    });

    it('who listens to a detached job is told, hears of it again once the store is back, and misses nothing', async () => {
      const { plane } = world;
      const body = { model: 'slow', request: { messages: [{ role: 'user', content: 'Hello' }] } };
      const { id } = await plane.send<{ id: string }>('POST', '/api/v1/jobs', body);
      const running = await taken();
      const events = await fetch(`${plane.url}/api/v1/jobs/${id}/events`, {
        headers: { authorization: `Bearer ${plane.admin_key}` },
      });
      const watching = new Flotilla({ url: plane.url, api_key: plane.admin_key }).jobs.wait(id);
      await until(
        'it runs',
        async () => (await plane.get<JobView>(`/api/v1/jobs/${id}`)).state === 'running',
      );
      world.store_link!.cut();
      expect(await events.text()).toMatch(/event: error\ndata: \{"error":\{.*"code":"unavailable".*\n\n$/);
      // Its lease is over by now: another control plane could have begun with it anew. This one does.
      await until('its node has given it up', () => running.closed);
      world.store_link!.restore();
      const again = await taken();
      again.setHeader('content-type', 'application/json');
      again.end(chatAnswer('well'));
      expect(await watching).toMatchObject({
        state: 'succeeded',
        attempts: [{ attempt: 1 }, { attempt: 2 }],
      });
    });

    it('for longer than a lease: detached work ends, which another control plane may have begun by then; attached work goes on', async () => {
      const { plane } = world;
      const attached = await stream();
      const body = { model: 'slow', request: { messages: [{ role: 'user', content: 'Hello' }] } };
      const { id } = await plane.send<{ id: string }>('POST', '/api/v1/jobs', body);
      const running = await taken();
      world.store_link!.cut();
      await until('its node has given it up', () => running.closed);
      attached.say('meanwhile');
      await until('the stream runs on', () => attached.state.text.includes('meanwhile'));
      world.store_link!.restore();
      const again = await taken();
      again.setHeader('content-type', 'application/json');
      again.end(chatAnswer('well'));
      await until(
        'it has ended',
        async () => (await plane.get<JobView>(`/api/v1/jobs/${id}`)).state === 'succeeded',
      );
      attached.finish();
      await attached.over;
      expect(attached.state.text.endsWith(DONE)).toBe(true);
    });

    it('for long: after 15 s an answer that cannot be recorded ends as unavailable, and never as a success', async () => {
      const [answer, ending, running] = [await whole(), await stream(), await stream()];
      world.store_link!.cut();
      const cut_ms = performance.now();
      answer.finish();
      ending.finish();
      await Promise.all([answer.over, ending.over]);
      const held_ms = performance.now() - cut_ms;
      expect(held_ms).toBeGreaterThan(14_500);
      expect(held_ms).toBeLessThan(17_000);
      expect(answer.state.told).toBe('503 unavailable');
      expect(ending.state.text).toContain('"code":"unavailable"');
      expect(ending.state.text).not.toContain('[DONE]');
      running.finish();
      await until('it has all but its end', () => running.state.text.includes('last'));
      world.store_link!.restore();
      await running.over;
      expect(running.state.text.endsWith(DONE)).toBe(true);
      expect(await settledOf(running.id)).toEqual([expect.objectContaining({ outcome: 'succeeded' })]);
    }, 40_000);

    it('while the control plane is told to stop: it stops', async () => {
      world.store_link!.cut();
      await until('it is not ready', async () => !(await ready()));
      world.plane.program().signal('SIGTERM');
      expect((await world.plane.program().ended).code).toBe(0);
      world.store_link!.restore();
      await world.plane.restart();
    });
  },
);
