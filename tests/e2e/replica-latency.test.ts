import { Agent, request } from 'node:http';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { NATS_URL } from '../support/nats.ts';
import { type ScriptedBackend, chatAnswer } from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';
import { type Plane, type World, openWorld } from '../support/world.ts';

/** How long a request takes from its client to the backend of a node that is linked to the other replica. */
const RATE = 200;
const SECONDS = 10;
const BOUND_MS = 30;

describe.skipIf(NATS_URL === undefined)('over two replicas (they need PostgreSQL and NATS)', () => {
  let world: World;
  let first: Plane;
  let second: Plane;
  let backend: ScriptedBackend;

  beforeAll(async () => {
    world = await openWorld({ heartbeat_ms: 2000, nats_url: NATS_URL! });
    first = world.plane;
    second = await world.replica();
    const answer = chatAnswer('Hello');
    backend = await world.backend((_request, response) => void response.end(answer));
    await world.node({
      name: 'home',
      control_url: second.url,
      backends: [{ url: backend.url, slots: 64 }],
    });
    await until('the first serves it', async () => (await first.chat({})).status === 200);
  });
  afterAll(() => world.close());

  test(`${RATE} requests a second reach the backend within ${BOUND_MS} ms, 99 of 100`, async () => {
    const agent = new Agent({ keepAlive: true, maxSockets: 64 });
    const sent_ms: number[] = [];
    const replies: Promise<number>[] = [];
    const warm_up = RATE;
    for (let n = 0; n < RATE * SECONDS + warm_up; n++) {
      const due_ms = n * (1000 / RATE);
      replies.push(after(due_ms, () => ask(agent, n)));
    }
    const statuses = await Promise.all(replies);
    agent.destroy();
    expect(statuses.filter((status) => status !== 200)).toEqual([]);
    const took = backend.requests.flatMap(({ headers, began_ms }) => {
      const n = Number(headers['x-request-id']?.toString().slice(1));
      return Number.isInteger(n) && n >= warm_up ? [began_ms - sent_ms[n]!] : [];
    });
    took.sort((a, b) => a - b);
    expect(took).toHaveLength(RATE * SECONDS);
    const at = (part: number) => took[Math.floor(took.length * part)]!;
    process.stdout.write(
      `p50 ${at(0.5).toFixed(1)} ms, p99 ${at(0.99).toFixed(1)} ms, most ${took.at(-1)!.toFixed(1)} ms\n`,
    );
    expect(at(0.99)).toBeLessThan(BOUND_MS);

    function ask(by: Agent, n: number): Promise<number> {
      sent_ms[n] = performance.now();
      return new Promise((resolve, reject) => {
        const call = request(`${first.url}/v1/chat/completions`, {
          method: 'POST',
          agent: by,
          headers: {
            authorization: `Bearer ${first.admin_key}`,
            'content-type': 'application/json',
            'x-request-id': `n${n}`,
          },
        });
        call.on('response', (reply) => {
          reply.resume();
          reply.on('end', () => resolve(reply.statusCode!));
        });
        call.on('error', reject);
        call.end(JSON.stringify({ model: 'scripted', messages: [{ role: 'user', content: 'Hello' }] }));
      });
    }
  });
});

function after<T>(delay_ms: number, run: () => Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    setTimeout(() => void run().then(resolve, reject), delay_ms);
  });
}
