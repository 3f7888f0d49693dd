import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { run } from '../../packages/cli/src/testing/command.ts';
import { fillDataDir } from '../support/store.ts';
import { APART, clientOf, endAll, isAlive, newDir, partsOf, start, up } from '../support/up.ts';
import { until } from '../support/until.ts';

/** How everything on one machine starts and ends. */
vi.setConfig({ testTimeout: 90_000, hookTimeout: 90_000 }); // several processes start, one after the other

afterAll(endAll);

describe('flotilla up', () => {
  let dir: string;
  let fleet: Awaited<ReturnType<typeof up>>;
  beforeAll(async () => {
    dir = await newDir();
    await fillDataDir(dir);
    fleet = await up(dir, '--sim', '--json');
  });

  test('lets a machine join in the background; there it can be asked, drained and left', async () => {
    const admin = await clientOf(dir, fleet.url);
    const { token } = await admin.tokens.create({ labels: { site: 'test' } });
    const state = join(await newDir(), 'n');
    const joined = await run(
      ['join', fleet.url, '--token', '-', '--name', 'attic', '--state-dir', state, '--detach', '--json'],
      APART,
      `${token}\n`,
    );
    expect(joined).toMatchObject({ code: 0, stderr: '' });
    const events = joined.stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    expect(events).toMatchObject([{ event: 'enrolled', fresh: true, name: 'attic' }, { event: 'connected' }]);
    const [attic] = (await admin.nodes.list().take(10)).filter(({ name }) => name === 'attic');
    expect(attic).toMatchObject({ state: 'online', labels: { site: 'test' } });

    const drained = await run(['node', 'drain', '--state-dir', state]);
    expect(drained).toMatchObject({ code: 0 });
    await until('its daemon is gone', () => !isAlive(Number(events[1]?.['pid'])));
    const left = await run(['node', 'leave', '--state-dir', state]);
    expect(left.stderr).toContain('attic has left');
    expect(await run(['node', 'status', '--state-dir', state])).toMatchObject({ code: 1 });
  });

  test('ends in order at a signal and takes its parts along; the next start goes on', async () => {
    const parts = await partsOf(fleet);
    expect(parts).toHaveLength(2);
    const secretKey = async () => (await readFile(join(dir, 'secret-key'), 'utf8')).trim();
    const secret = await secretKey();
    const admin = await clientOf(dir, fleet.url);
    const keyed = { name: 'sealed', base_url: 'http://127.0.0.1:9/v1', api_key: 'sk-of-a-provider' };
    await admin.providers.create({ ...keyed, enabled: false });
    fleet.signal('SIGINT');
    expect(await fleet.ended).toMatchObject({ code: 0 });
    expect(parts.filter(isAlive)).toEqual([]);
    expect(await readFile(join(dir, 'logs', 'node.log'), 'utf8')).toContain('Drained and deregistered');

    fleet = await up(dir, '--sim', '--json');
    // With the same key, or it would not have started: what the first start sealed opens.
    expect(await secretKey()).toBe(secret);
    const nodes = await (await clientOf(dir, fleet.url)).nodes.list().take(10);
    expect(nodes.filter(({ name }) => name !== 'attic')).toMatchObject([{ state: 'online' }]);
  });
});

describe('flotilla up for the first time', () => {
  let dir: string;
  beforeAll(async () => {
    dir = await newDir();
  });

  test('may be ended before the start is over', async () => {
    const program = start(dir);
    await until('it has begun', () => program.output().includes('Making the embedded store'));
    program.signal('SIGTERM');
    const { code, stdout, stderr } = await program.ended;
    expect({ code, stdout }).toEqual({ code: 0, stdout: '' });
    // There is no node yet, and what the start still does until it can be ended is no progress.
    expect(stderr).toMatch(/\nStopping: the control plane, which is just starting, [^\n]*\n$/);
  });

  test('says what is wrong with its data directory, and how to give another', async () => {
    const file = join(await newDir(), 'taken');
    await writeFile(file, '');
    const { code, stderr } = await start(file).ended;
    expect(code).toBe(1);
    expect(stderr).toMatch(/The data directory .*taken cannot be made: .*\nGive another with --data-dir\./);
  });

  test('may be ended while it waits for a model', async () => {
    const own = await newDir();
    await fillDataDir(own);
    await mkdir(join(own, 'node'));
    // A model server is named, but nothing listens there.
    await writeFile(join(own, 'node', 'node.yaml'), 'backends: [{ url: http://127.0.0.1:9 }]\n');
    const program = start(own);
    await until('it waits', () => program.output().includes('Waiting for a model'), 60_000);
    program.signal('SIGINT');
    const { code, stdout, stderr } = await program.ended;
    expect({ code, stdout }).toEqual({ code: 0, stdout: '' });
    expect(stderr).not.toContain('error');
  });

  test('without a node has nothing to wait for', async () => {
    const fleet = await up(dir, '--no-node', '--json');
    expect(JSON.parse(fleet.stdout())).toMatchObject({ event: 'ready', node: null, model: null });
  });
});
