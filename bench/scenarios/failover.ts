import { setTimeout as pause } from 'node:timers/promises';
import { until } from '../../tests/support/until.ts';
import type { Proxy } from '../../tests/support/proxy.ts';
import { startProxy } from '../../tests/support/proxy.ts';
import type { Plane, TestNode, World } from '../../tests/support/world.ts';
import { type Spread, spreadOf } from '../histogram.ts';
import { dial, requestBytes } from '../load.ts';
import { order, sharedNow_ms } from '../orders.ts';
import { figure } from '../figure.ts';
import { goalOf, type Report, SPREAD_COLUMNS, spreadCells } from '../report.ts';
import type { Scenario, Stage } from '../scenario.ts';
import { type Script, startServer } from '../script.ts';
import { benchKey, MODEL, openFlotilla } from '../targets.ts';

/**
 * How long it takes until work goes on elsewhere, with the default beat: a node is killed, a node falls silent, a
 * replica is killed. In each repetition one request without an answer so far (or one job) is at the node that dies.
 */
interface Case {
  what: string;
  goal_ms: number | null;
  took_ms: number[];
}

/** Each node has a backend of its own, so that it shows who works. */
interface Member {
  node: TestNode;
  backend: Script & { port: number };
  way: Proxy;
}

const SLOTS = 4;
/** Longer than any failover takes: what answers is never the one that was lost. */
const THINK_MS = 60_000;
const QUIET_MS = 40_000;

export const failover: Scenario = {
  name: 'failover',
  about: 'from a kill, from silence, from a replica’s death, until the first byte elsewhere',
  async run(stage) {
    const cases: Case[] = [];
    cases.push(...(await withNodes(stage)));
    const { nats_url, database_url } = stage.place;
    const replicas = nats_url !== undefined && database_url !== undefined;
    if (replicas) cases.push(...(await withReplicas(stage, nats_url)));
    return reportOf(cases, replicas, stage);
  },
};

async function withNodes(stage: Stage): Promise<Case[]> {
  const store = stage.place.database_url === undefined ? 'embedded' : 'postgres';
  const world = await openFlotilla(stage.place, store);
  const members: Member[] = [];
  try {
    for (const name of ['one', 'two']) members.push(await joinMember(world, name));
    const key = await benchKey(world.plane);
    const ways: [string, number | null, boolean, (member: Member) => void][] = [
      ['kill -9 of the node, a request', 3000, true, ({ node }) => node.program().signal('SIGKILL')],
      ['kill -9 of the node, a job', null, false, ({ node }) => node.program().signal('SIGKILL')],
      ['silence of the node, a request', 15_000, true, ({ way }) => way.blackhole()],
      ['silence of the node, a job', null, false, ({ way }) => way.blackhole()],
    ];
    const cases: Case[] = [];
    for (const [what, goal_ms, attached, lose] of ways) {
      const took_ms: number[] = [];
      for (let round = 0; round < stage.rounds; round++) {
        stage.say(`${what}, ${round + 1} of ${stage.rounds}`);
        took_ms.push(await move(world.plane, key, members, { attached, lose }));
      }
      cases.push({ what, goal_ms, took_ms });
    }
    return cases;
  } finally {
    for (const { way } of members) way.restore();
    await world.close();
    for (const { backend, way } of members) {
      await backend.stop();
      await way.close();
    }
  }
}

async function joinMember(world: World, name: string): Promise<Member> {
  const backend = await startServer('backend.ts');
  const way = await startProxy({ port: world.plane.port });
  const node = await world.node({
    name,
    control_url: way.url,
    backends: [{ url: `http://127.0.0.1:${backend.port}/v1`, slots: SLOTS }],
    env: { FLOTILLA_LOG_LEVEL: 'warn' },
  });
  return { backend, way, node };
}

/** @returns from the loss until another backend is asked; it answers at once, so that is when the first byte can come */
async function move(
  plane: Plane,
  key: string,
  members: Member[],
  { attached, lose }: { attached: boolean; lose: (member: Member) => void },
): Promise<number> {
  await until('both serve', async () => {
    const { data } = await plane.get<{ data: { state: string }[] }>('/api/v1/nodes');
    return data.filter(({ state }) => state === 'online').length === members.length;
  });
  for (const { backend } of members) await order(backend.port, 'arrivals');
  const n = Math.floor(Math.random() * 1e9);
  const ending = new AbortController();
  const fields = { messages: [{ role: 'user', content: 'Hello' }], bench_n: n, think_ms: THINK_MS };
  const headers = { authorization: `Bearer ${key}`, 'content-type': 'application/json' };
  const path = attached ? '/v1/chat/completions' : '/api/v1/jobs';
  const body = attached ? { model: MODEL, ...fields } : { kind: 'inference', model: MODEL, request: fields };
  const asked = fetch(`${plane.url}${path}`, {
    method: 'POST',
    headers,
    body: JSON.stringify(body),
    signal: ending.signal,
  });
  asked.catch(() => undefined);
  const job = attached ? null : ((await (await asked).json()) as { id: string });
  const first = await arrival(members, n);
  const lost = members[first.at]!;
  await pause(200);
  const lost_ms = sharedNow_ms();
  lose(lost);
  const next = await arrival(members, n);
  ending.abort();
  if (job !== null) await plane.send('POST', `/api/v1/jobs/${job.id}/cancel`);
  lost.way.restore();
  if (lost.node.program().child.exitCode !== null || lost.node.program().child.signalCode !== null)
    await lost.node.restart();
  return next.at_ms - lost_ms;
}

async function arrival(members: Member[], n: number): Promise<{ at: number; at_ms: number }> {
  return until(
    'a backend is asked',
    async () => {
      for (const [at, { backend }] of members.entries()) {
        const found = (await order<[number, number][]>(backend.port, 'arrivals')).find(([one]) => one === n);
        if (found !== undefined) return { at, at_ms: found[1] };
      }
      return undefined;
    },
    QUIET_MS,
  );
}

/** The client is at one replica, the node at the other, which is killed in mid-stream: how long the stream stands still. */
async function withReplicas(stage: Stage, nats_url: string): Promise<Case[]> {
  const world = await openFlotilla(stage.place, 'postgres', { nats_url });
  const other = await world.replica();
  const backend = await startServer('backend.ts');
  try {
    const node = await world.node({
      name: 'home',
      control_url: other.url,
      backends: [{ url: `http://127.0.0.1:${backend.port}/v1`, slots: SLOTS }],
      env: { FLOTILLA_NODE_CONTROL_URL: `${other.url},${world.plane.url}`, FLOTILLA_LOG_LEVEL: 'warn' },
    });
    const key = await benchKey(world.plane);
    const took_ms: number[] = [];
    for (let round = 0; round < stage.rounds; round++) {
      stage.say(`kill -9 of a replica, ${round + 1} of ${stage.rounds}`);
      await until('the model is known', async () => {
        const { data } = await world.plane.get<{ data: { id: string }[] }>('/v1/models');
        return data.some(({ id }) => id === MODEL);
      });
      took_ms.push(await standstill(world.plane, other, key));
      // It comes back, and the node to it: its first address.
      await other.restart();
      await node.restart();
      await until('the node serves', async () => (await node.view()).state === 'online');
    }
    return [{ what: 'kill -9 of the node’s replica, a stream', goal_ms: 5000, took_ms }];
  } finally {
    await world.close();
    await backend.stop();
  }
}

const EVENTS_PER_SECOND = 100;
const STREAM_S = 12;

async function standstill(plane: Plane, victim: Plane, key: string): Promise<number> {
  const url = `${plane.url}/v1/chat/completions`;
  const events = EVENTS_PER_SECOND * STREAM_S;
  const body = JSON.stringify({
    model: MODEL,
    messages: [{ role: 'user', content: 'Hello' }],
    stream: true,
    events,
    events_per_second: EVENTS_PER_SECOND,
  });
  const socket = await dial(url);
  let killed_ms = Number.NaN;
  let last_ms = Number.NaN;
  let longest_ms = 0;
  let text = '';
  const over = new Promise<void>((resolve) => {
    socket.on('close', () => resolve());
    socket.on('data', (chunk: Buffer) => {
      const now_ms = sharedNow_ms();
      text = (text + chunk.toString('latin1')).slice(-4096);
      if (!Number.isNaN(killed_ms)) longest_ms = Math.max(longest_ms, now_ms - Math.max(last_ms, killed_ms));
      last_ms = now_ms;
      if (/data: \[DONE\]|"error"/.test(text)) socket.destroy();
    });
  });
  socket.write(requestBytes(url, { authorization: `Bearer ${key}` }, Buffer.from(body)));
  await until('it streams', () => !Number.isNaN(last_ms));
  await pause(1000);
  killed_ms = sharedNow_ms();
  victim.program().signal('SIGKILL');
  await over;
  if (!text.includes('data: [DONE]')) throw new Error(`The stream did not go on: ${text.slice(-300)}`);
  return longest_ms;
}

function reportOf(cases: Case[], replicas: boolean, stage: Stage): Report {
  const spreads = cases.map((one) => ({ ...one, spread: spreadOf(Float64Array.from(one.took_ms)) }));
  return {
    name: 'failover',
    title: 'Failover',
    about:
      'Two nodes (real daemons) with the default beat of 5 s, each with a backend of its own; a request that has sent nothing ' +
      'yet, or a detached job, is at one of them. The node is killed (kill -9: its connection is reset), or all that it says is ' +
      'swallowed without a word. Measured until the other node’s backend is asked. A job waits for the end of the lost node’s ' +
      'lease (15 s after its last beat), as two nodes may never work on it at once. With two replicas the client is at the one ' +
      'that lives, and the longest standstill of a stream of 100 events a second is measured, which goes on whole. ' +
      `${stage.rounds} repetitions each.` +
      (replicas ? '' : ' Two replicas were left out: give DATABASE_URL and NATS_URL.'),
    goals: spreads
      .filter(({ goal_ms }) => goal_ms !== null)
      .map(({ what, goal_ms, spread }) => goalOf(`${what}: most`, { most: goal_ms! }, 'ms', spread.most)),
    tables: [
      {
        title: 'Until it goes on elsewhere',
        columns: ['', ...SPREAD_COLUMNS, 'repetitions'],
        rows: spreads.map(
          ({ what, spread, took_ms }: { what: string; spread: Spread; took_ms: number[] }) => [
            what,
            ...spreadCells(spread),
            figure(took_ms.length),
          ],
        ),
      },
    ],
    plots: [
      {
        name: 'most',
        title: 'Until it goes on elsewhere, at most',
        unit: 'ms',
        groups: [
          { label: 'most', bars: spreads.map(({ what, spread }) => ({ name: what, value: spread.most })) },
        ],
      },
    ],
    data: cases,
  };
}
