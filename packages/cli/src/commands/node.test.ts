import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { run, start } from '../testing/command.ts';
import { fakeDaemon } from '../testing/fake-daemon.ts';

async function daemon(answers: Record<string, object>) {
  const fake = await fakeDaemon(answers);
  onTestFinished(() => fake.close());
  const node = (verb: string, more: string[] = [], input = '') =>
    run(['node', verb, '--state-dir', fake.dir, ...more], {}, input);
  return { ...fake, node };
}

/** What else a daemon tells that has nothing to do. */
const IDLE = {
  node_id: 'node_1',
  version: '0.1.0',
  pid: 1,
  status: 'running',
  uptime_ms: 1,
  ready: false,
  not_ready_because: [],
  link: { state: 'connected', url: 'http://127.0.0.1:1', reason: null, last_ack_ms_ago: null, rtt_ms: null },
  drain: null,
  backends: [],
  pools: [],
  ignored_servers: [],
};
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

test('node run that may not start says why as any other command, for people and for programs', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'fl-'));
  onTestFinished(() => rm(dir, { recursive: true }));
  const refused = (...more: string[]) => run(['node', 'run', '--state-dir', dir, ...more]);
  const told = await refused();
  expect(told).toMatchObject({ code: 1, stdout: '' });
  expect(told.stderr).toMatch(/^error: This machine is not enrolled .*flotilla join URL/);
  expect(JSON.parse((await refused('--json')).stderr)).toMatchObject({
    error: { message: expect.stringContaining('not enrolled') },
  });
  await writeFile(join(dir, 'node.yaml'), 'slot: 4\n');
  const wrong = await refused();
  expect(wrong).toMatchObject({ code: 2, stdout: '' });
  expect(wrong.stderr).toMatch(/^error: .*did you mean slots\?/);
});

test('join where a daemon runs already says so as any other command', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'fl-'));
  onTestFinished(() => rm(dir, { recursive: true }));
  const url = 'http://127.0.0.1:1';
  const kept = { url, node_id: 'node_1', name: 'attic', credential: 'fln_1' };
  await writeFile(join(dir, 'credential'), JSON.stringify(kept));
  const alone = { FLOTILLA_NODE_STATUS_PORT: '0', FLOTILLA_NODE_FIND_BACKENDS: 'false' };
  const first = start(['node', 'run', '--state-dir', dir], alone);
  await vi.waitFor(() => expect(first.output.stderr).toContain('status server listens'), 10_000);
  const second = await run(['join', url, '--token', 'fle_1', '--state-dir', dir], alone);
  first.child.kill('SIGTERM');
  await first.ended;
  expect(second).toMatchObject({ code: 1, stdout: '' });
  expect(second.stderr).toMatch(
    new RegExp(`^error: Another Flotilla daemon \\(process ${first.child.pid}\\) uses .*node status`, 'm'),
  );
  expect(second.stderr).not.toContain('"level"');
});

test('node status without a model server says how to name one, and where', async () => {
  const { node } = await daemon({ status: { ...status, ...IDLE, state_dir: '/state' } });
  const { stdout } = await node('status');
  expect(stdout).toContain('/state/node.yaml');
  expect(stdout).toContain('flotilla node run --backend URL');
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
