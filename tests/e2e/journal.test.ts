import { mkdir, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ManualClock } from '@flotilla/core/testing';
import {
  type ExplainView,
  type JobView,
  type JournalHealth,
  type NodeView,
  STORE_OWNER,
} from '@flotilla/protocol';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { run } from '../../packages/cli/src/testing/command.ts';
import { decodeEntry, encodeEntry } from '../../packages/daemon/src/journal/entry.ts';
import { Journal } from '../../packages/daemon/src/journal/journal.ts';
import type { JournalEntry } from '../../packages/daemon/src/threads.ts';
import { enrolRawNode } from '../support/raw-node.ts';
import { type ScriptedBackend, type SeenRequest, chatAnswer } from '../support/scripted-backend.ts';
import { MAY_MOUNT, mountSmallDisk } from '../support/small-disk.ts';
import { quiet } from '../support/store.ts';
import { until } from '../support/until.ts';
import { type TestNode, type World, openWorld } from '../support/world.ts';

/** What becomes of detached work where a node's disk takes nothing, or gives back something else than it was given. */
let world: World;
beforeAll(async () => {
  world = await openWorld();
});
afterAll(() => world.close());

const HEAD = { 'content-type': 'application/json' };
const sound = (_: SeenRequest, response: Parameters<ScriptedBackend['answer']>[1]) =>
  void response.writeHead(200, HEAD).end(chatAnswer('Done.'));

/** A node with a model of its own name: nothing of what happened before is still under way in its journal. */
async function machine(name: string, control_url = world.plane.url) {
  const backend = await world.backend(sound, [name]);
  const node = await world.node({ name, backends: [{ url: backend.url, slots: 8 }], control_url });
  return { backend, node, journal: join(node.state_dir, 'journal') };
}

/** Requests wait. @returns what ends them */
function hold(backend: ScriptedBackend): () => void {
  const { promise, resolve } = Promise.withResolvers<void>();
  backend.answer = async (seen, response) => {
    await promise;
    sound(seen, response);
  };
  return resolve;
}

async function submit(model: string, content = 'Hello'): Promise<string> {
  const request = { messages: [{ role: 'user', content }] };
  return (await world.plane.send<{ id: string }>('POST', '/api/v1/jobs', { model, request })).id;
}

const show = (id: string) => world.plane.get<JobView>(`/api/v1/jobs/${id}`);
const explain = (id: string) => world.plane.get<ExplainView>(`/api/v1/jobs/${id}/explain`);
const ended = (id: string) =>
  until(`${id} has ended`, async () => {
    const job = await show(id);
    return job.finished_at !== null && job;
  });

function healthIs(node: TestNode, health: string): Promise<NodeView> {
  return until(`its journal is ${health}`, async () => {
    const view = await node.view();
    return view.journal?.health === health && view;
  });
}

/** @returns how it is mended */
type Break = (journal: string) => Promise<() => Promise<void>>;
const noFolder: Break = async (journal) => {
  await rm(journal, { recursive: true });
  await writeFile(journal, 'a file where the folder should be');
  return () => rm(journal);
};
const full: Break = async (journal) => {
  const disk = await mountSmallDisk(journal);
  onTestFinished(() => disk.unmount());
  await disk.fill();
  return () => disk.empty();
};
const readOnly: Break = async (journal) => {
  const disk = await mountSmallDisk(journal, 'size=64k,ro');
  onTestFinished(() => disk.unmount());
  return () => disk.unmount();
};

/** At the end of a test's name: what is skipped is not to be taken for proved. */
const NOT_PROVED = ' [NOT PROVED HERE: only root may mount a small disk]';
const causes: [what: string, needs_mount: boolean, broken: Break, why: RegExp][] = [
  [
    'a file where its folder should be',
    false,
    noFolder,
    /a file is where its folder should be; move that away$/,
  ],
  ['a full disk', true, full, /the disk is full \(ENOSPC\); make room on it$/],
  ['a file system that is read-only', true, readOnly, /read-only \(EROFS\); mount it writable$/],
];

describe('a node whose journal takes nothing', () => {
  for (const [at, [what, needs_mount, broken, why]] of causes.entries()) {
    const proved = MAY_MOUNT || !needs_mount;
    const says = 'gets no detached work, says why, serves who waits for an answer, and heals by itself';
    test.skipIf(!proved)(`for ${what}, ${says}${proved ? '' : NOT_PROVED}`, async () => {
      const name = `attic-${at}`;
      const { backend, node, journal } = await machine(name);
      const finish = hold(backend);
      const mend = await broken(journal);
      // Nobody looks at a journal that works: the first job that it is given finds out, and is served all the same.
      const first = await submit(name);
      const view = await healthIs(node, 'down');
      expect(view).toMatchObject({ state: 'online', health: 'degraded' });
      expect(view.journal!.reason).toMatch(why);
      expect(view.why.failing_probes).toEqual([`it takes no detached work: ${view.journal!.reason}`]);
      expect(view.why.summary).toContain(view.journal!.reason);
      finish();
      backend.answer = sound;
      expect((await ended(first)).state).toBe('succeeded');

      const next = await submit(name);
      expect((await explain(next)).nodes.find((one) => one.name === name)).toMatchObject({
        verdict: 'journal_down',
        reasons: [`it takes no detached work now: ${view.journal!.reason}`],
      });
      expect((await world.plane.chat({ model: name })).status).toBe(200);
      if (broken === noFolder) await saysSo(node, view.journal!.reason!);
      expect(await show(next)).toMatchObject({ state: 'queued', attempts: [] });
      await mend();
      expect(await ended(next)).toMatchObject({ state: 'succeeded', attempts: [{ attempt: 1 }] });
      expect((await healthIs(node, 'healthy')).health).toBe('healthy');
      expect((await node.view()).why.failing_probes).toEqual([]);
    });
  }

  /** On the machine itself, and to who administers. */
  async function saysSo(node: TestNode, reason: string): Promise<void> {
    const env = {
      HOME: world.dir,
      FLOTILLA_URL: world.plane.url,
      FLOTILLA_API_KEY: world.plane.admin_key,
      ...(world.database_url === undefined ? {} : { DATABASE_URL: world.database_url }),
    };
    const [status, doctor, shown] = await Promise.all([
      run(['node', 'status', '--state-dir', node.state_dir], env),
      run(['doctor', '--json', '--data-dir', join(world.dir, 'plane'), '--state-dir', node.state_dir], env),
      run(['nodes', 'show', node.name], env),
    ]);
    expect(status.stdout).toContain(`none: ${reason}`);
    const { checks } = JSON.parse(doctor.stdout) as { checks: { name: string }[] };
    expect(checks.find(({ name }) => name === 'journal')).toMatchObject({
      state: 'fail',
      found: `no detached work: ${reason}`,
      next: expect.stringContaining('tries again by itself'),
    });
    expect(checks.find(({ name }) => name === node.name)).toMatchObject({ state: 'warn' });
    expect(shown.stdout).toContain(reason);
  }
});

describe('a journal', () => {
  test.skipIf(!MAY_MOUNT)(
    `on a disk that has become read-only is read all the same${MAY_MOUNT ? '' : NOT_PROVED}`,
    async () => {
      const { dir, disk, open, told } = await smallJournal('read-only');
      const before = open();
      before.keep(large('job_a'));
      await before.close();
      await writeFile(join(dir, 'half.1.tmp'), 'a crash in the middle of a write');
      await disk.makeReadOnly();
      const own = open();
      expect(told).toEqual(['down']);
      expect(own.entries().map(({ offer }) => offer.job)).toEqual(['job_a']);
      await own.close();
    },
  );

  test.skipIf(!MAY_MOUNT)(
    `that has filled its disk has room for the next result once one is acknowledged${MAY_MOUNT ? '' : NOT_PROVED}`,
    async () => {
      const { dir, disk, clock, open, told } = await smallJournal('small');
      const own = open();
      own.keep(large('job_a'));
      await until('the first is on the disk', async () => (await readdir(dir)).join() === 'job_a.1');
      await disk.fill();
      own.keep(large('job_b'));
      await until('the second found no room', () => told.join() === 'down');
      // Half an entry would keep what room there is.
      expect((await readdir(dir)).filter((name) => name.endsWith('.tmp'))).toEqual([]);
      own.drop({ job: 'job_a', attempt: 1 });
      await until('the second is on the disk', async () => {
        clock.advance(60_000);
        return (await readdir(dir)).includes('job_b.1');
      });
      await until('it says so', () => told.join() === 'down,healthy');
      await own.close();
    },
  );

  async function smallJournal(name: string) {
    const dir = join(world.dir, name);
    await mkdir(dir);
    const disk = await mountSmallDisk(dir);
    onTestFinished(() => disk.unmount());
    const clock = new ManualClock();
    const told: string[] = [];
    const on_health = ({ health }: JournalHealth) => void told.push(health);
    const open = () => new Journal({ dir, node: 'node_a', clock, log: quiet, on_health });
    return { dir, disk, clock, open, told };
  }

  /** Of two such only one fits. */
  function large(job: string): JournalEntry {
    const usage = { prompt_tokens: 0, completion_tokens: 0, cached_tokens: 0, estimated: true };
    const body = Buffer.alloc(40_000, 'a');
    return {
      offer: {
        type: 'job.offer',
        job,
        attempt: 1,
        owner: STORE_OWNER,
        stream: 1,
        kind: 'inference',
        operation: 'chat',
        backend: 'b',
        model: 'm',
        streaming: false,
        add_usage: false,
        body_length: 0,
        deadlines: { run_ms: 1, first_byte_ms: 1, idle_ms: 1 },
        request_id: '',
      },
      ended: {
        result: {
          type: 'job.completed',
          job,
          attempt: 1,
          result: { status: 200, length: body.length },
          usage,
        },
        answer: { head: Buffer.from('{"status":200}'), body, complete: true },
      },
    };
  }
});

describe('a node of a release before that', () => {
  test('is taken for able; that it rejects uses up no attempt of the job, and is one story however often it does', async () => {
    const raw = await enrolRawNode(world, 'older');
    const older = await raw.join();
    let said: Record<string, unknown> = {};
    const beats = setInterval(() => older.beat(said), 100);
    onTestFinished(() => {
      clearInterval(beats);
      older.close();
    });
    let offered = older.next('job.offer');
    const id = await submit('older');
    for (let times = 1; times <= 4; times++) {
      const { job, attempt } = await offered;
      expect([job, attempt]).toEqual([id, times]);
      offered = older.next('job.offer');
      older.send({ type: 'job.rejected', job, attempt, reason: 'journal_unwritable' });
    }
    await offered;
    expect((await show(id)).attempts).toMatchObject([
      { attempt: 4, outcome: 'rejected', message: 'journal_unwritable' },
      { attempt: 5, outcome: 'open' },
    ]);
    // What cannot be read of a later one costs it nothing either.
    said = { journal: 'in another shape' };
    older.send({ type: 'job.rejected', job: id, attempt: 5, reason: 'journal_unwritable' });
    await until('it is offered again', () =>
      older.heard.some((one) => one.type === 'job.offer' && one.attempt === 6),
    );
    said = { journal: { health: 'down', reason: 'it says so now' } };
    older.send({ type: 'job.rejected', job: id, attempt: 6, reason: 'journal_unwritable' });
    await until('it is believed', async () =>
      (await explain(id)).nodes.some((one) => one.verdict === 'journal_down'),
    );
    expect(await show(id)).toMatchObject({ state: 'queued' });
    expect(older.heard.filter(({ type }) => type === 'error')).toEqual([]);
    await world.plane.send('POST', `/api/v1/jobs/${id}/cancel`, {});
  });
});

describe('a daemon that starts on a journal', () => {
  test('of which a part is damaged, or another node’s, sets that aside, says so, and delivers the rest', async () => {
    const link = await world.proxy(world.plane.port);
    const { backend, node, journal } = await machine('cellar', `http://127.0.0.1:${link.port}`);
    const finish = hold(backend);
    const contents = ['whole', 'truncated', 'garbage', 'changed'];
    const ids = await Promise.all(contents.map((content) => submit('cellar', content)));
    await until('all run', () => backend.in_flight === contents.length);
    link.cut();
    finish();
    const entry = (at: number) => join(journal, `${ids[at]}.1`);
    await until('all results are on its disk', async () => {
      const files = await Promise.all(ids.map((_, at) => readFile(entry(at)).catch(() => Buffer.of())));
      return files.every((file) => {
        const read = decodeEntry(file);
        return typeof read !== 'string' && read.entry.ended !== null;
      });
    });
    node.program().signal('SIGKILL');
    const whole = await readFile(entry(0));
    await truncate(entry(1), whole.byteLength - 7);
    await writeFile(entry(2), Buffer.alloc(4096, 0xa5));
    const changed = await readFile(entry(3));
    changed[changed.lastIndexOf('Done.')] = 0x21;
    await writeFile(entry(3), changed);
    const read = decodeEntry(whole);
    if (typeof read === 'string') throw new Error(read);
    const foreign = { ...read.entry, offer: { ...read.entry.offer, job: 'job_foreign' } };
    foreign.ended!.result.job = 'job_foreign';
    await writeFile(join(journal, 'job_foreign.1'), encodeEntry(foreign, 'node_of_another_fleet'));

    link.restore();
    await node.restart();
    const jobs = await Promise.all(ids.map(ended));
    expect(jobs.map(({ state }) => state)).toEqual(ids.map(() => 'succeeded'));
    // Damaged results are lost; their jobs are done again.
    const bodies = backend.requests.map(({ body }) => body.toString());
    const asked = contents.map((content) => bodies.filter((body) => body.includes(content)).length);
    expect(asked).toEqual([1, 2, 2, 2]);
    expect(jobs[0]!.attempts).toMatchObject([{ attempt: 1, outcome: 'succeeded' }]);
    const aside = (await readdir(journal)).filter((name) => /\.(unreadable|foreign)$/.test(name)).toSorted();
    expect(aside).toEqual(
      [...[1, 2, 3].map((at) => `${ids[at]}.1.unreadable`), 'job_foreign.1.foreign'].toSorted(),
    );
    for (const name of aside) expect(node.output()).toContain(name.replace(/\.\w+$/, ''));
    expect(node.output().match(/entry of the journal cannot be used/g)).toHaveLength(4);
    expect(node.output()).toContain('node_of_another_fleet');
  });
});
