import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { run } from '../testing/command.ts';
import { fakeDaemon } from '../testing/fake-daemon.ts';

async function daemon(answers: Record<string, object>) {
  const fake = await fakeDaemon(answers);
  onTestFinished(() => fake.close());
  const node = (verb: string, more: string[] = [], input = '') =>
    run(['node', verb, '--state-dir', fake.dir, ...more], {}, input);
  return { ...fake, node };
}

const status = { ok: true, name: 'attic', attempts: [{}, {}] };

describe('node drain', () => {
  test('of a node that finished its work ends with 0', async () => {
    const { node } = await daemon({ status, drain: { ok: true, drained: true, released: 0 } });
    const told = await node('drain');
    expect(told).toMatchObject({ code: 0, stdout: '' });
    expect(told.stderr).toContain('attic is drained and has ended.');
    expect(await node('drain', ['--json'])).toMatchObject({ code: 0, stderr: '' });
  });

  test.each([
    [{ drained: false, released: 2 }, '2 requests were cut.'],
    [{ drained: false, released: 1 }, '1 request was cut.'],
    [{ drained: false, released: 0 }, 'see its log'],
  ])('that was none ends with 1 and says so, for people and for programs: %j', async (answer, words) => {
    const { node } = await daemon({ status, drain: { ok: true, ...answer } });
    const told = await node('drain');
    expect(told).toMatchObject({ code: 1, stdout: '' });
    expect(told.stderr).toContain(`It ended before all of its work did: `);
    expect(told.stderr).toContain(words);
    const json = await node('drain', ['--json']);
    expect(json).toMatchObject({ code: 1, stderr: '' });
    expect(JSON.parse(json.stdout)).toEqual({ ok: true, ...answer });
  });
});

test('node leave has left either way, and says what it cut', async () => {
  const { node } = await daemon({ leave: { ok: true, left: true, deregistered: true, released: 3 } });
  const told = await node('leave');
  expect(told).toMatchObject({ code: 0, stdout: '' });
  expect(told.stderr).toContain('3 requests were cut.');
  expect(JSON.parse((await node('leave', ['--json'])).stdout)).toMatchObject({ left: true, released: 3 });
});

describe('node credential', () => {
  test('hands what comes on stdin to the daemon, and repeats none of it', async () => {
    const { node, asked } = await daemon({ credential: { ok: true, name: 'attic', in_use: true } });
    const told = await node('credential', [], ' fln_new\n');
    expect(asked).toEqual([{ verb: 'credential', credential: 'fln_new' }]);
    expect(told).toMatchObject({ code: 0, stdout: '' });
    expect(told.stderr).toContain('attic has its new credential');
    const json = await node('credential', ['--json'], 'fln_new');
    expect(json).toMatchObject({ code: 0, stderr: '' });
    expect(JSON.parse(json.stdout)).toEqual({ ok: true, name: 'attic', in_use: true });
    expect(told.stderr + json.stdout).not.toContain('fln_');
  });

  test.each(['', 'flk_key', 'fln_', 'fln_two words', '{"credential":"fln_new"}'])(
    'is wrong usage with anything else: %j',
    async (input) => {
      const { node, asked } = await daemon({});
      const told = await node('credential', [], input);
      expect(told).toMatchObject({ code: 2, stdout: '' });
      expect(told.stderr).toContain('flotilla nodes rotate NAME | ssh HOST flotilla node credential');
      expect(asked).toEqual([]);
      if (input !== '' && input !== 'fln_') expect(told.stderr).not.toContain(input);
    },
  );

  test('is kept for the next daemon where none runs', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'fl-'));
    onTestFinished(() => rm(dir, { recursive: true }));
    const take = () => run(['node', 'credential', '--state-dir', dir], {}, 'fln_new');
    const stranger = await take();
    expect(stranger).toMatchObject({ code: 1 });
    expect(stranger.stderr).toContain('has not joined any fleet');
    const file = join(dir, 'credential');
    const kept = { url: 'http://127.0.0.1:1', node_id: 'node_1', name: 'attic', credential: 'fln_old' };
    await writeFile(file, JSON.stringify(kept));
    const told = await take();
    expect(told).toMatchObject({ code: 0, stdout: '' });
    expect(told.stderr).toContain('the next one starts with it');
    expect(JSON.parse(await readFile(file, 'utf8'))).toMatchObject({
      node_id: 'node_1',
      credential: 'fln_new',
    });
  });
});
