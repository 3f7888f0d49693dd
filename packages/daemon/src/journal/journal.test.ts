import { chmod, mkdir, readdir, readFile, rm, stat, truncate, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { ManualClock } from '@flotilla/core/testing';
import type { JournalHealth } from '@flotilla/protocol';
import { beforeEach, describe, expect, onTestFinished, test } from 'vitest';
import { folder } from '../testing/folder.ts';
import { recordedLog } from '../testing/recorded-log.ts';
import { until } from '../testing/until.ts';
import type { JournalEntry } from '../threads.ts';
import { Journal } from './journal.ts';

let dir: string;
let clock: ManualClock;
let log: ReturnType<typeof recordedLog>;
beforeEach(async () => {
  dir = join(await folder(), 'journal');
  clock = new ManualClock();
  log = recordedLog();
});

function open(on_health: (health: JournalHealth) => void = () => {}, node = 'node_own'): Journal {
  return new Journal({ dir, node, clock, log, on_health });
}

const begun = (job: string): JournalEntry => ({
  offer: {
    type: 'job.offer',
    job,
    attempt: 1,
    owner: 'store',
    stream: 7,
    kind: 'inference',
    operation: 'chat',
    backend: 'main',
    model: 'm',
    streaming: false,
    add_usage: false,
    body_length: 2,
    deadlines: { run_ms: 1, first_byte_ms: 1, idle_ms: 1 },
    request_id: 'req_1',
  },
  ended: null,
});
const result = (job: string, text = 'Answer, with umläuts and \0.'): JournalEntry => ({
  ...begun(job),
  ended: {
    result: {
      type: 'job.completed',
      job,
      attempt: 1,
      result: { status: 200, length: Buffer.byteLength(text) },
      usage: { prompt_tokens: 1, completion_tokens: 2, cached_tokens: 0, estimated: false },
      total_ms: 3,
    },
    answer: { head: Buffer.from('{"status":200}'), body: Buffer.from(text), complete: true },
  },
});

describe('the journal', () => {
  test('gives the next process what this one had: results to the byte, and what was only begun', async () => {
    const journal = open();
    journal.keep(begun('job_a'));
    journal.keep(result('job_b'));
    journal.keep(begun('job_c'));
    journal.keep(result('job_c', ''));
    await journal.close();
    const entries = open().entries();
    expect(entries.map(({ offer }) => offer.job).toSorted()).toEqual(['job_a', 'job_b', 'job_c']);
    for (const { offer, ended } of entries) {
      const want =
        offer.job === 'job_a' ? begun('job_a') : result(offer.job, offer.job === 'job_c' ? '' : undefined);
      expect(offer).toEqual(want.offer);
      expect(ended?.result).toEqual(want.ended?.result);
      expect(Buffer.from(ended?.answer?.head ?? []).toString()).toBe(want.ended ? '{"status":200}' : '');
      expect(Buffer.from(ended?.answer?.body ?? [])).toEqual(Buffer.from(want.ended?.answer?.body ?? []));
    }
  });

  test('forgets what was dropped, before it is written and after', async () => {
    const journal = open();
    journal.keep(result('job_a'));
    journal.drop({ job: 'job_a', attempt: 1 });
    journal.keep(result('job_b'));
    await until(async () => expect(await readdir(dir)).toEqual(['job_b.1']));
    journal.drop({ job: 'job_b', attempt: 1 });
    // One that is being written at this moment.
    for (let turn = 0; turn < 20; turn++) {
      journal.keep(result(`job_${turn}`));
      await new Promise((next) => void setImmediate(next));
      journal.drop({ job: `job_${turn}`, attempt: 1 });
    }
    await journal.close();
    expect(await readdir(dir)).toEqual([]);
  });

  test('is closed to other users, also where its directory was open', async () => {
    await mkdir(dir, { recursive: true });
    await chmod(dir, 0o755);
    const journal = open();
    journal.keep(result('job_a'));
    await journal.close();
    expect((await stat(dir)).mode & 0o777).toBe(0o700);
    expect((await stat(join(dir, 'job_a.1'))).mode & 0o777).toBe(0o600);
  });

  test('puts aside what is torn, changed, foreign or of another version, says so, and uses the rest', async () => {
    const journal = open();
    for (const job of ['torn', 'empty', 'changed', 'newer', 'renamed', 'whole']) journal.keep(result(job));
    await journal.close();
    const path = (job: string) => join(dir, `${job}.1`);
    await truncate(path('torn'), (await stat(path('torn'))).size - 1);
    await truncate(path('empty'), 0);
    const text = (await readFile(path('changed'))).toString('latin1');
    await writeFile(path('changed'), text.replace('Answer', 'Bnswer'), 'latin1');
    await writeFile(path('newer'), text.replace('flotilla-journal 1', 'flotilla-journal 2'), 'latin1');
    await writeFile(path('renamed'), await readFile(path('whole')));
    await writeFile(join(dir, 'notes.txt'), 'not of this program');
    await writeFile(join(dir, 'half.1.tmp'), 'a crash in the middle of a write');
    await mkdir(join(dir, 'odd.tmp', 'deeper'), { recursive: true });
    expect(
      open()
        .entries()
        .map(({ offer }) => offer.job),
    ).toEqual(['whole']);
    expect(log.lines.map(({ level }) => level)).toEqual(Array.from({ length: 6 }, () => 'error'));
    const left = ['changed.1', 'empty.1', 'newer.1', 'notes.txt', 'renamed.1', 'torn.1'];
    expect((await readdir(dir)).toSorted()).toEqual(
      [...left.map((name) => `${name}.unreadable`), 'whole.1'].toSorted(),
    );
    // And once only.
    expect(open().entries()).toHaveLength(1);
    expect(log.lines).toHaveLength(6);
  });

  test('puts aside what another node left here, of this fleet or another, says so, and delivers none of it', async () => {
    const before = open(undefined, 'node_other');
    before.keep(begun('job_a'));
    before.keep(result('job_b'));
    await before.close();
    expect(open().entries()).toEqual([]);
    expect((await readdir(dir)).toSorted()).toEqual(['job_a.1.foreign', 'job_b.1.foreign']);
    expect(log.lines).toMatchObject([{ level: 'error' }, { level: 'error' }]);
    expect(JSON.stringify(log.lines)).toContain('it is of node_other, and this node is node_own');
    // And once only, whoever comes after.
    expect(open(undefined, 'node_other').entries()).toEqual([]);
    expect(log.lines).toHaveLength(2);
  });

  test('removes what was put aside at a start a day later, and no earlier', async () => {
    const before = open(undefined, 'node_other');
    before.keep(result('job_a'));
    await before.close();
    await writeFile(join(dir, 'job_b.1'), 'no entry');
    const aside = ['job_a.1.foreign', 'job_b.1.unreadable'];
    for (const passes_ms of [0, 24 * 3_600_000 - 1]) {
      clock.advance(passes_ms);
      open().entries();
      expect((await readdir(dir)).toSorted()).toEqual(aside);
    }
    clock.advance(1);
    open().entries();
    expect(await readdir(dir)).toEqual([]);
  });

  test('says of an entry that cannot be put aside that it stays', async () => {
    const journal = open();
    await writeFile(join(dir, 'job_a.1'), 'no entry');
    const in_the_way = join(dir, 'job_a.1.unreadable');
    await mkdir(join(in_the_way, 'deeper'), { recursive: true });
    await utimes(in_the_way, clock.wall_ms() / 1000, clock.wall_ms() / 1000);
    expect(journal.entries()).toEqual([]);
    expect(log.lines).toMatchObject([{ level: 'error', message: expect.stringContaining('it stays') }]);
    expect(await readdir(dir)).toContain('job_a.1');
  });

  test('delivers what was written before entries said whose they are', async () => {
    const journal = open();
    journal.keep(result('job_a'));
    await journal.close();
    const [, meta, ...rest] = (await readFile(join(dir, 'job_a.1'))).toString('latin1').split('\n');
    const text = [meta!.replace('"node":"node_own",', ''), ...rest].join('\n');
    const bytes = Buffer.from(text, 'latin1');
    await writeFile(join(dir, 'job_a.1'), [`flotilla-journal 1 ${bytes.length} ${crc32(bytes)}\n`, bytes]);
    expect(open().entries()).toMatchObject([{ offer: { job: 'job_a' } }]);
  });

  test('keeps what cannot be written until it can, and says both', async () => {
    const told: JournalHealth[] = [];
    const journal = open((health) => told.push(health));
    await rm(dir, { recursive: true });
    await writeFile(dir, 'a file where the directory should be');
    journal.keep(result('job_a'));
    await until(() => expect(told).toHaveLength(1));
    expect(told[0]).toEqual({ health: 'down', reason: expect.stringContaining('move that away') as string });
    // The folder cannot be made either, which is no other cause: it is said once.
    await until(() => {
      clock.advance(1000);
      expect(clock.started.length).toBeGreaterThan(1);
    });
    expect(told).toHaveLength(1);
    // It may leave the machine.
    expect(told[0]!.reason).not.toContain(dir);
    journal.keep(result('job_b'));
    expect(journal.entries().map(({ offer }) => offer.job)).toEqual(['job_a', 'job_b']);
    await rm(dir);
    await until(() => {
      clock.advance(1000);
      expect(told.at(-1)!.health).toBe('healthy');
    });
    await journal.close();
    expect((await readdir(dir)).toSorted()).toEqual(['job_a.1', 'job_b.1']);
  });

  test('that cannot be written is looked at ever more seldom, a minute apart at most, and a healthy one never', async () => {
    const told: JournalHealth[] = [];
    await writeFile(dir, 'a file where the directory should be');
    const journal = open((health) => told.push(health));
    onTestFinished(() => journal.close());
    expect(told).toMatchObject([{ health: 'down' }]);
    for (let tries = 1; tries <= 9; tries++) {
      await until(() => expect(clock.started).toHaveLength(tries));
      clock.advance(60_000);
    }
    expect(clock.started).toEqual([1, 2, 4, 8, 16, 32, 60, 60, 60].map((seconds) => seconds * 1000));
    await rm(dir);
    await until(() => {
      clock.advance(60_000);
      expect(told.map(({ health }) => health)).toEqual(['down', 'healthy']);
    });
    expect(clock.pending).toBe(0);
  });

  test('writes no file outside its directory, whatever a job is called', async () => {
    const journal = open();
    journal.keep(result('../credential'));
    await journal.close();
    expect(await readdir(join(dir, '..'))).toEqual(['journal']);
    expect(open().entries()).toHaveLength(1);
  });

  test('is gone when the node leaves', async () => {
    const journal = open();
    journal.keep(result('job_a'));
    await journal.destroy();
    await expect(stat(dir)).rejects.toThrow('ENOENT');
  });
});
