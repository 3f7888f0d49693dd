import { execFile } from 'node:child_process';
import { mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { run } from '../../packages/cli/src/testing/command.ts';
import { lanAddress } from '../../packages/cli/src/up/advice.ts';
import { fillDataDir } from '../support/store.ts';
import { APART, clientOf, endAll, isAlive, newDir, partsOf, start, up } from '../support/up.ts';
import { until } from '../support/until.ts';

/** Everything on one machine, by one command; its starts and ends: tests/long/up.test.ts. */
vi.setConfig({ testTimeout: 90_000, hookTimeout: 90_000 }); // several processes start, one after the other

const shell = promisify(execFile);
afterAll(endAll);

test.runIf(lanAddress() !== undefined)(
  'for other machines says where it listens, and how they join; `tokens create` says the same',
  async () => {
    const dir = await newDir();
    await fillDataDir(dir);
    const open = start(dir, '--no-node', '--host', '0.0.0.0');
    await until('it is up', () => open.stdout().includes('No node runs on this machine'), 60_000);
    const [, url = ''] = /API +(http:\S+), and at every other address of this machine \(0\.0\.0\.0\)/.exec(
      open.stdout(),
    )!;
    const [, line] = /joins with a token.*\n +(.*) fle_… --insecure/.exec(open.stdout())!;
    const token = await run(['tokens', 'create'], { FLOTILLA_URL: url, FLOTILLA_DATA_DIR: dir });
    expect(token.stderr).toContain(`${line} ${token.stdout.trim()} --insecure\n`);
  },
);

describe('flotilla up', () => {
  let dir: string;
  let fleet: Awaited<ReturnType<typeof up>>;
  beforeAll(async () => {
    dir = await newDir();
    await fillDataDir(dir);
    // As starts leave it that were killed.
    await mkdir(join(dir, 'store.new-1'));
    await writeFile(join(dir, 'admin-key.1.new'), 'flk_of_nobody\n');
    fleet = await up(dir, '--sim');
  });

  const secretKey = async () => (await readFile(join(dir, 'secret-key'), 'utf8')).trim();

  test('prints a curl that works as it is printed', async () => {
    const [, curl = ''] = /Try it:\n([^]*?)\n\n/.exec(fleet.stdout()) ?? [];
    expect(curl).toContain('/v1/chat/completions');
    const { stdout } = await shell('sh', ['-c', curl]);
    const answer = JSON.parse(stdout) as { choices: { message: { content: string } }[] };
    expect(answer.choices[0]?.message.content).toContain('[simulated]');
  });

  test('clears away what a killed start has left', async () => {
    expect((await readdir(dir)).filter((name) => name.includes('new'))).toEqual([]);
  });

  test('says meanwhile what it is doing', () => {
    expect(fleet.output()).toMatch(/Starting the control plane…[^]*Opening the embedded store\.[^]*is up\./);
  });

  test('says that its model server is simulated, and shows its keys to nobody but their owner', async () => {
    expect(fleet.stdout()).toContain('SIMULATED');
    const path = join(dir, 'admin-key');
    const key = (await readFile(path, 'utf8')).trim();
    expect(key).toMatch(/^flk_[\w-]{43}$/);
    expect((await stat(path)).mode & 0o777).toBe(0o600);
    expect(fleet.output()).not.toContain(key);
    // What seals the keys of providers: no operator has to think of it.
    expect((await stat(join(dir, 'secret-key'))).mode & 0o777).toBe(0o600);
    const admin = await clientOf(dir, fleet.url);
    const keyed = { name: 'sealed', base_url: 'http://127.0.0.1:9/v1', api_key: 'sk-of-a-provider' };
    expect(await admin.providers.create({ ...keyed, enabled: false })).toMatchObject({ has_key: true });
    for (const secret of [await secretKey(), keyed.api_key]) {
      expect(secret).toMatch(/^[\w-]{16,43}$/);
      expect(fleet.output()).not.toContain(secret);
      expect(await readFile(join(dir, 'logs', 'control.log'), 'utf8')).not.toContain(secret);
    }
  });

  test('serves the other commands without a key being given', async () => {
    const environment = { FLOTILLA_URL: fleet.url, FLOTILLA_DATA_DIR: dir };
    const nodes = await run(['nodes'], environment);
    expect(nodes.stdout).toMatch(/online +healthy +0\/\d+ +flotilla-sim/);
    const chat = await run(['chat', 'hello there'], environment);
    expect(chat).toMatchObject({ code: 0, stderr: '' });
    expect(chat.stdout).toContain('hello there');
    const status = await run(['node', 'status', '--state-dir', join(dir, 'node')]);
    expect(status.stdout).toMatch(/gets work +yes/);
    expect(status.stdout).toContain('simulated');
  });

  test('refuses a second one on the same data directory, and says whose it is', async () => {
    const second = await run(['up', '--port', '0', '--data-dir', dir], APART);
    expect(second).toMatchObject({ code: 1, stdout: '' });
    expect(second.stderr).toMatch(/^error: .*in use[^]*--data-dir/m);
  });

  test('whose port is taken names --port', async () => {
    const { port } = new URL(fleet.url);
    const other_dir = await newDir();
    await fillDataDir(other_dir);
    const other = await run(['up', '--port', port, '--data-dir', other_dir], {
      ...APART,
      FLOTILLA_HOTS: '::',
    });
    expect(other).toMatchObject({ code: 1, stdout: '' });
    expect(other.stderr).toMatch(new RegExp(`error: Port ${port} [^]*--port`));
    // It might have been the setting that was meant to prevent this.
    expect(other.stderr).toMatch(/^warning: FLOTILLA_HOTS .*FLOTILLA_HOST\?$/m);
  });

  test('ended by kill -9 leaves no part behind', async () => {
    const parts = await partsOf(fleet);
    expect(parts).toHaveLength(2); // the simulated backend and the node
    fleet.signal('SIGKILL');
    await fleet.ended;
    await until('its parts are gone', () => !parts.some(isAlive));
  });
});
