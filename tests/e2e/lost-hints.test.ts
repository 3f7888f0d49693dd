import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type LossyNats, startLossyNats } from '../support/lost-hints.ts';
import { NATS_URL } from '../support/nats.ts';
import { DONE, SSE, type ScriptedBackend, chatAnswer, chatChunk } from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';
import { type Plane, type TestNode, type World, openWorld } from '../support/world.ts';

/** Two replicas, and a bus that loses all that is told to everybody: each hint, and the first word of work that waits. */
const WITHIN_MS = 1000;
const REQUESTS = 50;
const EVENTS = Array.from({ length: 20 }, (_, place) => chatChunk(`${place} ä${'z'.repeat(2000)}`));

describe.skipIf(NATS_URL === undefined)('with every hint lost (needs PostgreSQL and NATS)', () => {
  let world: World;
  let bus: LossyNats;
  let first: Plane;
  let second: Plane;
  let backend: ScriptedBackend;
  let node: TestNode;

  beforeAll(async () => {
    const { hostname, port } = new URL(NATS_URL!);
    bus = await startLossyNats({ host: hostname, port: Number(port || 4222) });
    world = await openWorld({ heartbeat_ms: 2000, nats_url: bus.url });
    first = world.plane;
    second = await world.replica();
    backend = await world.backend((_request, response) => void response.end(chatAnswer('Hello')));
    node = await world.node({
      name: 'home',
      control_url: second.url,
      backends: [{ url: backend.url, slots: 64 }],
    });
  });
  afterAll(async () => {
    await world.close();
    await bus.close();
  });
  beforeEach(() => {
    backend.requests.length = 0;
    backend.answer = (_request, response) => void response.end(chatAnswer('Hello'));
  });

  test('work that waits at one replica is begun by a node of the other within a second, and streams are byte-equal', async () => {
    backend.answer = (_request, response) => {
      response.writeHead(200, SSE);
      for (const event of EVENTS) response.write(event);
      response.end(DONE);
    };
    const sent_ms = new Map<string, number>();
    const ask = async (number: number) => {
      await pause(40 * number);
      sent_ms.set(String(number), performance.now());
      return (await first.chat({ stream: true, user: String(number) })).text();
    };
    const answers = await Promise.all(Array.from({ length: REQUESTS }, (_, number) => ask(number)));
    expect(answers.filter((answer) => answer !== EVENTS.join('') + DONE)).toEqual([]);
    const waits = backend.requests.map(({ body, began_ms }) => {
      const { user } = JSON.parse(body.toString()) as { user: string };
      return began_ms - sent_ms.get(user)!;
    });
    expect(waits).toHaveLength(REQUESTS);
    process.stdout.write(`without hints: begun after ${Math.round(Math.max(...waits))} ms at the most\n`);
    expect(Math.max(...waits)).toBeLessThan(WITHIN_MS);
    expect(bus.dropped).toBeGreaterThanOrEqual(1);
  });

  test('a detached job that one accepts is begun by a node of the other within a second', async () => {
    const began_ms = performance.now();
    await first.send('POST', '/api/v1/jobs', {
      kind: 'inference',
      model: 'scripted',
      request: { messages: [{ role: 'user', content: 'Hello' }] },
    });
    await until('its backend has it', () => backend.requests.length === 1);
    expect(backend.requests[0]!.began_ms - began_ms).toBeLessThan(WITHIN_MS);
  });

  test('a key that is made, or revoked, on one counts on the other within a second', async () => {
    const { id, key } = await first.send<{ id: string; key: string }>('POST', '/api/v1/keys', {
      name: 'new',
    });
    const status = async () => (await second.chat({}, { key })).status;
    expect(await msUntil('the other takes it', async () => (await status()) === 200)).toBeLessThan(WITHIN_MS);
    await first.send('DELETE', `/api/v1/keys/${id}`);
    const refused = async () => [401, 403].includes(await status());
    expect(await msUntil('the other refuses it', refused)).toBeLessThan(WITHIN_MS);
  });

  test('an operator’s wish that one hears counts on the other within a second', async () => {
    await first.send('POST', `/api/v1/nodes/${node.id}/cordon`, {});
    const answers = (status: number) => async () => (await second.chat({})).status === status;
    expect(await msUntil('the other refuses work', answers(503))).toBeLessThan(WITHIN_MS);
    await first.send('POST', `/api/v1/nodes/${node.id}/uncordon`, {});
    expect(await msUntil('the other takes work', answers(200))).toBeLessThan(WITHIN_MS);
  });
});

async function msUntil(what: string, look: () => Promise<boolean>): Promise<number> {
  const began_ms = performance.now();
  await until(what, look);
  return performance.now() - began_ms;
}
