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
/** Processes that have just started compile what they run: for so long a request takes several times as much. */
const WARM_UP_SECONDS = 5;
/** A machine that stands still for a moment spoils one of them, a fault of ours all. */
const WINDOWS = 3;

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
    let sent_ms: number[] = [];
    await send(WARM_UP_SECONDS);
    const p99s: number[] = [];
    while (p99s.length < WINDOWS && !p99s.some((p99) => p99 < BOUND_MS)) {
      backend.requests.length = 0;
      await send(SECONDS);
      const took = backend.requests
        .map(({ headers, began_ms }) => began_ms - sent_ms[Number(headers['x-request-id'])]!)
        .sort((a, b) => a - b);
      expect(took).toHaveLength(RATE * SECONDS);
      const [p50, p99, most] = [0.5, 0.99, 1].map((part) => took[Math.ceil(took.length * part) - 1]!);
      process.stdout.write(
        `p50 ${p50!.toFixed(1)} ms, p99 ${p99!.toFixed(1)} ms, most ${most!.toFixed(1)} ms\n`,
      );
      p99s.push(p99!);
    }
    agent.destroy();
    expect(Math.min(...p99s)).toBeLessThan(BOUND_MS);

    async function send(seconds: number): Promise<void> {
      sent_ms = [];
      const replies = Array.from({ length: RATE * seconds }, (_, n) =>
        after(n * (1000 / RATE), () => ask(agent, n)),
      );
      expect((await Promise.all(replies)).filter((status) => status !== 200)).toEqual([]);
    }

    function ask(by: Agent, n: number): Promise<number> {
      sent_ms[n] = performance.now();
      return new Promise((resolve, reject) => {
        const call = request(`${first.url}/v1/chat/completions`, {
          method: 'POST',
          agent: by,
          headers: {
            authorization: `Bearer ${first.admin_key}`,
            'content-type': 'application/json',
            'x-request-id': String(n),
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
