import type { ServerResponse } from 'node:http';
import { setTimeout as pause } from 'node:timers/promises';
import { RECONNECT_FIRST_AFTER_MS, STREAM_WAIT_MS } from '@flotilla/core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { NATS_URL } from '../support/nats.ts';
import { callsByNumber, numberedJobs, overlaps, tellNumber } from '../support/numbered-jobs.ts';
import { type Proxy, startProxy } from '../support/proxy.ts';
import { DONE, SSE, type ScriptedBackend, type SeenRequest, chatChunk } from '../support/scripted-backend.ts';
import { seededRandom } from '../support/seeded-random.ts';
import { until } from '../support/until.ts';
import { type Plane, type TestNode, type World, openWorld } from '../support/world.ts';

/**
 * Three replicas on one PostgreSQL and one NATS, killed at random (kill -9) and started again, and nodes that know the
 * addresses of all. `npm run test:long` with FLOTILLA_TEST_DATABASE_URL. FLOTILLA_TEST_KILLS: how many kills each test
 * has; FLOTILLA_TEST_SEED repeats the choices of a run; when they fall is the machine's.
 */
const LONG = process.env['FLOTILLA_TEST_LONG'] === '1';
const KILLS = Number(process.env['FLOTILLA_TEST_KILLS'] ?? 20);
const SEED = Number(process.env['FLOTILLA_TEST_SEED'] ?? Math.floor(Math.random() * 2 ** 31));
/** Leases of nine seconds: what runs outlives the way from one replica to another. */
const H_MS = 3000;
const WITHIN_MS = 180_000 + KILLS * 10_000;
const ATTACHED_WITHIN_MS = 5000;
const SLOTS = 16;
const BATCH = 20;
/** What a node has finished is on its disk by then. */
const ON_DISK_AFTER_MS = 500;
const STREAMS = 12;
const EVENTS = 40;

let world: World;
/** What the replicas reach NATS through. */
let bus: Proxy;
let planes: Plane[];
const random = seededRandom(SEED);

/** Kills of nodes, by the backend that each has for itself. */
const node_kills: { backend: ScriptedBackend; at_ms: number }[] = [];

describe.skipIf(!LONG || NATS_URL === undefined)('replicas are killed (needs PostgreSQL and NATS)', () => {
  beforeAll(async () => {
    const { hostname, port } = new URL(NATS_URL!);
    bus = await startProxy({ host: hostname, port: Number(port || 4222) });
    world = await openWorld({ heartbeat_ms: H_MS, nats_url: `nats://127.0.0.1:${bus.port}` });
    planes = [world.plane, await world.replica(), await world.replica()];
  });
  afterAll(async () => {
    await world.close();
    await bus.close();
  });

  test('a stream waits anew each time that the bus is away', async () => {
    const backend = await world.backend(streamSlowly, ['slow']);
    const [home, other] = planes as [Plane, Plane];
    const way = await world.proxy(home.port);
    const node = await world.node({
      name: 'far',
      control_url: way.url,
      backends: [{ url: backend.url, slots: SLOTS }],
    });
    way.lead(other.port);
    way.cut();
    way.restore();
    await until('it has moved', async () => (await linkedTo(other)).length === 1);
    await until('that is known', async () => (await linkedTo(home)).length === 0);
    const moved_ms = performance.now();
    const reply = home.chat({ model: 'slow', stream: true, user: '0' });
    await until('it streams', () => backend.requests.length === 1);
    // Once while the time ends that what the node had before would have waited.
    await pause(moved_ms + STREAM_WAIT_MS - 800 - performance.now());
    bus.cut();
    await pause(1600);
    bus.restore();
    // Once before the time is over that the first outage had, and until the node's replica would have stopped it.
    await pause(STREAM_WAIT_MS - 500 - 1600);
    bus.cut();
    await pause(2200);
    bus.restore();
    expect(await (await reply).text()).toBe(eventsOf(0).join('') + DONE);
    await node.program().stop();
  });

  test(
    'streams of a surviving replica are whole, or end with an error in-band and no [DONE]',
    async () => {
      const [home, ...others] = planes as [Plane, Plane, Plane];
      const backend = await world.backend(streamNumber, ['streamed']);
      const nodes: TestNode[] = [];
      for (const name of ['hopper-1', 'hopper-2']) {
        nodes.push(await nodeOf(name, backend, others));
      }
      const killing = { over: false };
      const outcomes = { whole: 0, cut: 0, refused: 0 };
      const wrong: unknown[] = [];
      let number = 0;
      const client = async () => {
        while (!killing.over) {
          const own = number++;
          const outcome = await readStream(home, own);
          if (typeof outcome === 'string') outcomes[outcome]++;
          else wrong.push(outcome);
        }
      };
      const clients = Array.from({ length: STREAMS }, client);
      const attached = await kill(others, [], []);
      killing.over = true;
      await Promise.all(clients);
      print(`streams: ${JSON.stringify(outcomes)}, ${attachedText(attached)}`);
      for (const node of nodes) await node.program().stop();
      expect(wrong).toEqual([]);
      expect(outcomes.whole).toBeGreaterThan(outcomes.cut + outcomes.refused);
    },
    WITHIN_MS,
  );

  test(
    'detached jobs end once each, go on where they run, and nodes are soon attached elsewhere',
    async () => {
      const backends: ScriptedBackend[] = [];
      const nodes: TestNode[] = [];
      for (const name of ['north', 'south', 'west']) {
        const backend = await world.backend(answerNumber);
        backends.push(backend);
        nodes.push(await nodeOf(name, backend, planes));
      }
      const jobs = numberedJobs(planes);
      const began_ms = performance.now();
      let over = false;
      const submitting = (async () => {
        for (let from = 0; !over; from += BATCH) {
          await jobs.submit(from, BATCH);
          await pause(500);
        }
      })();
      const attached = await kill(planes, nodes, backends);
      over = true;
      await submitting;
      const killed_ms = performance.now();
      await until('every job has ended', async () => !(await jobs.someAreOpen()), WITHIN_MS);
      const ended_ms = performance.now();
      await until('nothing runs any more', () => backends.every(({ in_flight }) => in_flight === 0));
      for (const node of nodes) await node.program().stop();
      for (const plane of planes) await plane.program().stop();

      const calls = callsByNumber(backends);
      const asked = [...calls.values()].reduce((sum, own) => sum + own.length, 0);
      print(
        `detached: ${jobs.ids.size} jobs, ${node_kills.length} kills of nodes, ${attachedText(attached)}; ` +
          `killed for ${seconds(killed_ms - began_ms)} s, ended ${seconds(ended_ms - killed_ms)} s later; backends asked ${asked} times`,
      );
      expect(await jobs.wrongInStore({ database_url: world.database_url! })).toEqual([]);
      expect(overlaps(backends)).toEqual([]);
      expect(restarted(calls)).toEqual([]);
      expect(settledOf(attached)).not.toEqual([]);
      expect(p99(settledOf(attached))).toBeLessThan(ATTACHED_WITHIN_MS);
    },
    WITHIN_MS,
  );
});

function nodeOf(name: string, backend: ScriptedBackend, known: readonly Plane[]): Promise<TestNode> {
  // Each begins at another one.
  const turned = known.map((_, place) => known[(place + name.length) % known.length]!.url);
  return world.node({
    name,
    backends: [{ url: backend.url, slots: SLOTS }],
    env: { FLOTILLA_NODE_CONTROL_URL: turned.join(',') },
  });
}

/**
 * Kills replicas, now and then two at once or a node, and starts each again after a moment.
 * @returns how long each node of a killed replica took to be attached again
 */
async function kill(
  victims: readonly Plane[],
  nodes: readonly TestNode[],
  backends: readonly ScriptedBackend[],
): Promise<Attached[]> {
  const attached: Attached[] = [];
  const linked_at_ms = new Map<string, number>();
  for (let kills = 0; kills < KILLS; ) {
    await pause(300 + (random() < 0.5 ? 1000 : 4000) * random());
    if (nodes.length > 0 && random() < 0.2) {
      const place = Math.floor(nodes.length * random());
      nodes[place]!.program().signal('SIGKILL');
      node_kills.push({ backend: backends[place]!, at_ms: performance.now() });
      await pause(1000 * random());
      await nodes[place]!.restart();
      linked_at_ms.set(nodes[place]!.id, performance.now());
      continue;
    }
    const first = Math.floor(victims.length * random());
    const dying = victims.filter((_, place) => place === first || (random() < 0.1 && victims.length > 2));
    const theirs = (await Promise.all(dying.map(linkedTo))).flat();
    const at_ms = performance.now();
    for (const plane of dying) plane.program().signal('SIGKILL');
    kills += dying.length;
    const restarting = dying.map(async (plane) => {
      await pause(2000 * random());
      await plane.restart();
    });
    // A killed one still answers for a moment.
    await Promise.all(dying.map((plane) => plane.program().ended));
    const waiting = new Set(theirs);
    await until('its nodes are attached again', async () => {
      for (const id of (await Promise.all(planes.map(linkedTo))).flat()) {
        if (!waiting.delete(id)) continue;
        const stood_ms = at_ms - (linked_at_ms.get(id) ?? -Infinity);
        const after_ms = performance.now() - at_ms;
        attached.push({
          after_ms,
          served: dying.length < planes.length,
          settled: dying.length === 1 && stood_ms >= RECONNECT_FIRST_AFTER_MS,
        });
        linked_at_ms.set(id, performance.now());
      }
      return waiting.size === 0;
    });
    await Promise.all(restarting);
  }
  return attached;
}

const linkedTo = (plane: Plane): Promise<string[]> => plane.linked().catch(() => []);

/** Tells the job's number, after a while that differs: most are short, some outlive the replica that gave them out. */
async function answerNumber(request: SeenRequest, response: ServerResponse): Promise<void> {
  await pause(random() < 0.1 ? 1000 + 5000 * random() : 5 + 45 * random());
  tellNumber(request, response);
}

/** Jobs that a backend was asked to do again although their node was not killed meanwhile. */
function restarted(calls: ReturnType<typeof callsByNumber>): unknown[] {
  const killedDuring = ({ backend, began_ms, ended_ms }: { backend: ScriptedBackend } & SeenRequest) =>
    node_kills.some(
      (one) =>
        one.backend === backend &&
        one.at_ms >= began_ms &&
        one.at_ms <= (ended_ms ?? Infinity) + ON_DISK_AFTER_MS,
    );
  return [...calls].flatMap(([number, own]) => {
    const needless = own.slice(0, -1).filter((call) => !killedDuring(call));
    return needless.map(({ began_ms, ended_ms, aborted_ms, backend }) => ({
      number,
      calls: own.length,
      backend: backend.port,
      began_ms,
      ended_ms,
      aborted_ms,
    }));
  });
}

/** The events of that number: of one size each in one stream, which differs. */
function eventsOf(number: number): string[] {
  const padding = 'z'.repeat([10, 500, 20_000][number % 3]!);
  return Array.from({ length: EVENTS }, (_, place) => chatChunk(`${number}/${place} ä${padding}`));
}

const streamNumber = (request: SeenRequest, response: ServerResponse) =>
  stream(request, response, () => 200 * random());
const streamSlowly = (request: SeenRequest, response: ServerResponse) => stream(request, response, () => 320);

async function stream({ body }: SeenRequest, response: ServerResponse, gap_ms: () => number): Promise<void> {
  const { user } = JSON.parse(body.toString()) as { user: string };
  response.writeHead(200, SSE);
  for (const event of eventsOf(Number(user))) {
    if (response.destroyed) return;
    response.write(event);
    await pause(gap_ms());
  }
  response.end(DONE);
}

/** @returns what it was, or what was wrong with it */
async function readStream(plane: Plane, number: number): Promise<'whole' | 'cut' | 'refused' | object> {
  const reply = await plane.chat({ model: 'streamed', stream: true, user: String(number) });
  const text = await reply.text().catch((error: unknown) => `broke off: ${String(error)}`);
  if (!reply.ok) {
    await pause(200);
    return reply.status >= 500 && text.includes('"error"')
      ? 'refused'
      : { number, status: reply.status, text };
  }
  const said = text.replaceAll(/^:.*\n\n/gm, '');
  const whole = eventsOf(number).join('');
  if (said === whole + DONE) return 'whole';
  const failed = said.lastIndexOf('data: {"error"');
  // What was cut within an event is set apart from the error by an empty line.
  const before = whole.startsWith(said.slice(0, failed)) || whole.startsWith(said.slice(0, failed - 2));
  if (failed >= 0 && !said.includes('[DONE]') && before) return 'cut';
  let same = 0;
  while (same < said.length && said[same] === whole[same]) same++;
  return {
    number,
    length: said.length,
    of: whole.length,
    same,
    differs: said.slice(same, same + 80),
    end: said.slice(-120),
  };
}

interface Attached {
  after_ms: number;
  /** Another replica was there. */
  served: boolean;
  /** One was killed alone, and the link had stood for so long that its end does not count as a refusal. */
  settled: boolean;
}

function settledOf(attached: readonly Attached[]): number[] {
  return attached.filter(({ settled }) => settled).map(({ after_ms }) => after_ms);
}

function p99(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.ceil(values.length * 0.99) - 1] ?? 0;
}

function attachedText(attached: readonly Attached[]): string {
  const times = (values: number[]) => {
    const sorted = values.toSorted((a, b) => a - b);
    const [half, most] = [sorted[Math.floor(sorted.length / 2)] ?? 0, sorted.at(-1) ?? 0].map(Math.round);
    return `${values.length} nodes within ${half} ms (p50), ${Math.round(p99(values))} ms (p99), ${most} ms (most)`;
  };
  return (
    `${KILLS} kills of replicas, attached again ${times(attached.map(({ after_ms }) => after_ms))}; ` +
    `of these, while another lived: ${times(attached.filter(({ served }) => served).map(({ after_ms }) => after_ms))}; ` +
    `one killed alone after links of 3 s or more: ${times(settledOf(attached))}`
  );
}

const seconds = (ms: number) => (ms / 1000).toFixed(1);
const print = (text: string) => void process.stdout.write(`seed ${SEED}: ${text}\n`);
