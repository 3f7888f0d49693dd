import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import type { JobBatchVerdicts, JobView, NodeView } from '@flotilla/protocol';
import { afterEach, describe, expect, test } from 'vitest';
import { decodeEntry } from '../../packages/daemon/src/journal/entry.ts';
import type { JournalEntry } from '../../packages/daemon/src/threads.ts';
import { type RawNode, enrolRawNode } from '../support/raw-node.ts';
import { type ScriptedBackend, chatAnswer } from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';
import { type TestNode, type World, openWorld } from '../support/world.ts';

/** Detached jobs while processes die and links go away: none is lost, none has two results, none runs twice at once. */
let world: World;
afterEach(() => world.close());

const H_MS = 400;
/** Each test starts a control plane and nodes, some of them twice. */
const WITHIN_MS = 60_000;
/** How long the link stays cut at least. */
const CUT_MS = Number(process.env['FLOTILLA_TEST_CUT_MS'] ?? 0);
const request = { messages: [{ role: 'user', content: 'Hello' }] };
const HEAD = { 'content-type': 'application/json' };

async function submit(count: number, more: object = {}): Promise<string[]> {
  const jobs = Array.from({ length: count }, () => ({ model: 'scripted', request, ...more }));
  const { data } = await world.plane.send<JobBatchVerdicts>('POST', '/api/v1/jobs/batch', { jobs });
  return data.map((one) => (one as { id: string }).id);
}

const show = (id: string) => world.plane.get<JobView>(`/api/v1/jobs/${id}`);

async function ended(ids: string[], within_ms = 30_000): Promise<JobView[]> {
  return Promise.all(
    ids.map((id) =>
      until(
        `${id} has ended`,
        async () => {
          const job = await show(id).catch(() => undefined);
          return job !== undefined && job.finished_at !== null && job;
        },
        within_ms,
      ),
    ),
  );
}

/** What the node's disk has of detached work. */
function journalOf({ state_dir }: TestNode): JournalEntry[] {
  const dir = join(state_dir, 'journal');
  const names = readdirSync(dir).filter((name) => !name.endsWith('.tmp'));
  return names.flatMap((name) => {
    try {
      const entry = decodeEntry(readFileSync(join(dir, name)));
      return typeof entry === 'string' ? [] : [entry.entry];
    } catch {
      return []; // gone since
    }
  });
}

/** Answers that wait until the test lets them go; later ones are answered at once. */
function gate(): { answer: ScriptedBackend['answer']; open: () => void } {
  const { promise, resolve } = Promise.withResolvers<void>();
  return {
    answer: async (_seen, response) => {
      await promise;
      response.writeHead(200, HEAD).end(chatAnswer('Done.'));
    },
    open: resolve,
  };
}

describe('kill -9 of the control plane', () => {
  test(
    'loses no acknowledged job: what runs goes on, and each ends with one result',
    async () => {
      world = await openWorld({ heartbeat_ms: H_MS });
      const { answer, open } = gate();
      const backend = await world.backend(answer);
      await world.node({ name: 'box', backends: [{ url: backend.url, slots: 2 }] });
      const ids = await submit(6);
      await until('two of them run', () => backend.in_flight === 2);
      world.plane.program().signal('SIGKILL');
      await world.plane.restart();
      open();
      const jobs = await ended(ids);
      expect(jobs.map(({ state }) => state)).toEqual(ids.map(() => 'succeeded'));
      const rows = (await world.usage()).filter((row) => ids.includes(row.job));
      expect(rows.map((row) => row.job).toSorted()).toEqual(ids.toSorted());
    },
    WITHIN_MS,
  );

  test(
    'loses no result that a node has finished meanwhile, though the run’s deadline passes before it is back',
    async () => {
      world = await openWorld({ heartbeat_ms: H_MS });
      const { answer, open } = gate();
      const backend = await world.backend(answer);
      await world.node({ name: 'box', backends: [{ url: backend.url, slots: 1 }] });
      const [id] = await submit(1, { run_timeout_ms: 2000 });
      await until('it runs', async () => (await show(id!)).state === 'running');
      const deadline_ms = performance.now() + 2000;
      world.plane.program().signal('SIGKILL');
      open();
      await until('its answer is with the node', () => backend.in_flight === 0);
      await pause(deadline_ms - performance.now());
      await world.plane.restart();
      expect((await ended([id!]))[0]).toMatchObject({ state: 'succeeded', attempts: [{ attempt: 1 }] });
      expect(backend.requests).toHaveLength(1);
    },
    WITHIN_MS,
  );
});

describe('a restart of the control plane that most nodes do not come back from', () => {
  test(
    'is taken for a fault of its own: what they hold is kept for them, until most are back',
    async () => {
      world = await openWorld({ heartbeat_ms: H_MS });
      const names = Array.from({ length: 5 }, (_, place) => `crowd-${place}`);
      const nodes = await Promise.all(names.map((name) => enrolRawNode(world, name)));
      const join = async (place: number) => {
        const models = [{ id: place < 2 ? 'scripted' : 'else' }];
        const [name, pools] = [names[place], [{ id: 'pool', capacity: 4, capacity_from: 'config' }]];
        const backends = [{ id: 'backend', kind: 'raw', pool: 'pool', models }];
        const link = await nodes[place]!.join({ descriptor: { name, pools, backends } });
        link.beats(H_MS / 2);
        return link;
      };
      // The other one with the model comes later: the job is the first one's.
      const holder = await join(0);
      const offer = holder.next('job.offer');
      const [id] = await submit(1);
      const { job, attempt } = await offer;
      holder.send({ type: 'job.accepted', job, attempt });
      holder.send({ type: 'job.started', job, attempt });
      await until('it runs', async () => (await show(id!)).state === 'running');
      await Promise.all([1, 2, 3, 4].map(join));

      await world.plane.restart();
      const [other] = await Promise.all([join(1), join(2)]);
      const missing = await until(
        'nobody waits for it any more',
        async () => {
          const view = await world.plane.get<NodeView>(`/api/v1/nodes/${nodes[0]!.id}`);
          return view.state === 'offline' && view;
        },
        20_000,
      );
      expect(missing.why.alarms.join()).toContain('held back');
      const later = other.next('job.offer');
      const [second] = await submit(1);
      expect((await later).job).toBe(second);
      const held = { state: 'running', attempts: [{ node: nodes[0]!.id, outcome: 'open' }] };
      expect(await show(id!)).toMatchObject(held);

      const again = other.next('job.offer', (message) => message.job === id);
      const back = await Promise.all([join(3), join(4)]);
      expect((await again).attempt).toBe(2);
      for (const link of [other, ...back]) link.close();
    },
    WITHIN_MS,
  );

  test(
    'is none of its own where fewer are missing: what they hold is given to another',
    async () => {
      world = await openWorld({ heartbeat_ms: H_MS });
      const { answer } = gate();
      const backend = await world.backend(answer);
      const holder = await world.node({ name: 'holder', backends: [{ url: backend.url, slots: 1 }] });
      const crowd = await Promise.all([1, 2, 3, 4].map((n) => enrolRawNode(world, `crowd-${n}`)));
      const join = async (node: RawNode) => (await node.join()).beats(H_MS / 2);
      await Promise.all(crowd.map(join));
      const [id] = await submit(1);
      await until('it runs', async () => (await show(id!)).state === 'running');
      holder.program().signal('SIGKILL');
      await world.plane.restart();
      await Promise.all(crowd.map(join));
      const requeued = await until(
        'it waits for another',
        async () => {
          const view = await show(id!);
          return view.state === 'queued' && view.attempts.length > 0 && view;
        },
        20_000,
      );
      expect(requeued.attempts).toMatchObject([{ node: holder.id, outcome: 'node_lost' }]);
      expect((await holder.view()).why.alarms).toEqual([]);
    },
    WITHIN_MS,
  );
});

describe('kill -9 of a node', () => {
  test(
    'has its jobs done by another, each with one result and the story of both attempts',
    async () => {
      world = await openWorld({ heartbeat_ms: H_MS });
      const { answer, open } = gate();
      const first = await world.backend(answer);
      const box = await world.node({ name: 'box', backends: [{ url: first.url, slots: 2 }] });
      const ids = await submit(2);
      await until('both run', () => first.in_flight === 2);
      box.program().signal('SIGKILL');
      const second = await world.backend((_seen, response) => {
        response.writeHead(200, HEAD).end(chatAnswer('Done.'));
      });
      await world.node({ name: 'other', backends: [{ url: second.url, slots: 2 }] });
      const jobs = await ended(ids);
      open();
      for (const job of jobs) {
        expect(job.state).toBe('succeeded');
        expect(job.attempts.map(({ outcome }) => outcome)).toEqual(['node_lost', 'succeeded']);
      }
    },
    WITHIN_MS,
  );
});

describe('a node whose link is cut', () => {
  test(
    'delivers what it finished meanwhile, however long after its lease, if nobody else was given the job; also when its daemon was killed',
    async () => {
      world = await openWorld({ heartbeat_ms: H_MS });
      const backend = await world.backend(() => undefined);
      const proxy = await world.proxy(world.plane.port);
      const box = await world.node({
        name: 'box',
        backends: [{ url: backend.url, slots: 2 }],
        control_url: `http://127.0.0.1:${proxy.port}`,
      });
      for (const daemon of ['lives', 'is killed']) {
        const before = backend.requests.length;
        const { answer, open } = gate();
        backend.answer = answer;
        const [id] = await submit(1);
        await until('it runs', () => backend.in_flight === 1);
        proxy.cut();
        const cut_ms = performance.now();
        open();
        await until('the answer is with the node', () => backend.in_flight === 0);
        await until('and on its disk', () => journalOf(box).some(({ ended }) => ended !== null));
        if (daemon === 'is killed') box.program().signal('SIGKILL');
        await until('the node is taken for lost', async () => (await box.view()).state === 'offline');
        await until('its job waits again', async () => (await show(id!)).state === 'queued');
        await pause(Math.max(0, cut_ms + CUT_MS - performance.now()));
        if (daemon === 'is killed') await box.restart();
        proxy.restore();
        const [job] = await ended([id!]);
        expect(job).toMatchObject({ state: 'succeeded', result: JSON.parse(chatAnswer('Done.')) });
        const attempts = job!.attempts.map(({ attempt, outcome }) => [attempt, outcome]);
        const asked = backend.requests.length - before;
        expect({ daemon, attempts, asked }).toEqual({ daemon, attempts: [[1, 'succeeded']], asked: 1 });
        await until('nothing of it is left on the node', () => journalOf(box).length === 0);
      }
      expect(box.output()).not.toContain('entry of the journal cannot be used');
    },
    WITHIN_MS + 2 * CUT_MS,
  );
});

describe('a node that falls silent with a job', () => {
  test(
    'has stopped it by its own clock before another node begins it; stopped by SIGSTOP, as soon as it goes on',
    async () => {
      world = await openWorld({ heartbeat_ms: H_MS });
      const { answer, open } = gate();
      const first = await world.backend(answer);
      const proxy = await world.proxy(world.plane.port);
      const box = await world.node({
        name: 'box',
        backends: [{ url: first.url, slots: 1 }],
        control_url: `http://127.0.0.1:${proxy.port}`,
      });
      const second = await world.backend((_seen, response) => {
        response.writeHead(200, HEAD).end(chatAnswer('Done.'));
      });

      const [id] = await submit(1);
      await until('it runs', () => first.in_flight === 1);
      const other = await world.node({ name: 'other', backends: [{ url: second.url, slots: 1 }] });
      proxy.blackhole();
      const [job] = await ended([id!]);
      expect(job!.attempts.map(({ outcome }) => outcome)).toEqual(['node_lost', 'succeeded']);
      // The times at which each backend was at work on it.
      const [before, after] = [first.requests[0]!, second.requests[0]!];
      expect(before.aborted_ms).not.toBeNull();
      expect(before.ended_ms!).toBeLessThan(after.began_ms);

      await world.plane.send('POST', `/api/v1/nodes/${other.id}/cordon`);
      proxy.restore();
      await until('the node is back', async () => (await box.view()).state === 'online');
      const [again] = await submit(1);
      await until('the next one runs', () => first.in_flight === 1);
      await world.plane.send('POST', `/api/v1/nodes/${other.id}/uncordon`);
      const stopped_ms = performance.now();
      box.program().signal('SIGSTOP');
      expect((await ended([again!]))[0]!.state).toBe('succeeded');
      // Its last acknowledged beat was sent up to an interval before; from then on the lease is three of them.
      expect(second.requests[1]!.began_ms - stopped_ms).toBeGreaterThan(2 * H_MS - 100);
      // A process that stands still cannot stop its backend either; it does before it says a word.
      box.program().signal('SIGCONT');
      await until('the first has let go', () => first.in_flight === 0);
      expect(first.requests[1]!.aborted_ms).not.toBeNull();
      await until('the node is back', async () => (await box.view()).state === 'online');
      expect([first.requests.length, second.requests.length]).toEqual([2, 2]);
      open();
    },
    WITHIN_MS,
  );
});
