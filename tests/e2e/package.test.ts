import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import manifest from '../../packages/cli/package.json' with { type: 'json' };
import { until } from '../support/until.ts';

/**
 * The package as a user gets it: packed, installed by npm into an empty folder, run from there. What it depends on comes
 * from npm's cache or the registry that npm is told of; without either this fails, and says so.
 */
vi.setConfig({ testTimeout: 120_000, hookTimeout: 300_000 }); // npm installs, from wherever it is told to

const shell = promisify(execFile);
const ROOT = resolve(import.meta.dirname, '../..');

/** The environment of somebody who knows nothing of the repository, and has no settings of the product. */
function clean(more: Record<string, string> = {}): Record<string, string> {
  const foreign =
    /^(FLOTILLA_|DATABASE_URL|NATS_URL|PORT$|VITEST|NODE_OPTIONS|NODE_PATH|INIT_CWD|npm_(?!config_(registry|cache|userconfig)))/;
  const inherited = Object.entries(process.env).filter(([name]) => !foreign.test(name));
  return { ...(Object.fromEntries(inherited) as Record<string, string>), NO_COLOR: '1', ...more };
}

describe('the package', () => {
  let work: string;
  let home: string;
  let packaged: string;
  beforeAll(async () => {
    // Short: the path of a socket lies below it.
    work = await mkdtemp(join(tmpdir(), 'fl-p'));
    home = join(work, 'home');
    const { stdout } = await shell(process.execPath, [join(ROOT, 'tools/package.ts'), work], {
      env: clean(),
    });
    const tarball = stdout.trim();
    await writeFile(join(work, 'package.json'), '{"private": true}');
    const install = ['install', '--prefer-offline', '--ignore-scripts', '--no-audit', '--no-fund', tarball];
    await shell('npm', install, { cwd: work, env: clean() }).catch((error: unknown) => {
      const { stderr } = error as { stderr: string };
      throw new Error(
        `npm could not install the package. It needs the registry (npm config get registry), or a cache that has everything:\n${stderr}`,
        { cause: error },
      );
    });
    packaged = join(work, 'node_modules/flotilla');
  });
  afterAll(() => rm(work, { recursive: true, force: true }));

  const flotilla = (...args: string[]) =>
    shell(process.execPath, [join(packaged, 'bin/flotilla.js'), ...args], { env: clean({ HOME: home }) });

  test('has the program, its documents, and nothing else: no sources, no tests', async () => {
    const files = await readdir(packaged, { recursive: true });
    expect(files).toEqual(
      expect.arrayContaining([
        'README.md',
        'LICENSE',
        'bin/flotilla.js',
        'dist/main.js',
        'dist/link/thread.js',
      ]),
    );
    expect(files.filter((name) => name.endsWith('.ts') || /test|fixture/.test(name))).toEqual([]);
    const { dependencies } = JSON.parse(await readFile(join(packaged, 'package.json'), 'utf8')) as {
      dependencies: Record<string, string>;
    };
    expect(Object.values(dependencies).filter((version) => !/^\d+\.\d+\.\d+$/.test(version))).toEqual([]);
  });

  test('says its version, by the name that npm gave it', async () => {
    const { stdout } = await shell(join(work, 'node_modules/.bin/flotilla'), ['--version'], {
      env: clean({ PATH: `${resolve(process.execPath, '..')}:${process.env['PATH']}` }),
    });
    expect(stdout.trim()).toBe(manifest.version);
  });

  test('says what to do under a Node that is too old, where no newer one lies beside it', async () => {
    const old = `Object.defineProperty(process, 'versions', { value: { ...process.versions, node: '20.0.0' } });`;
    const NODE_OPTIONS = `--import=data:text/javascript,${encodeURIComponent(old)}`;
    const told = await shell(process.execPath, [join(packaged, 'bin/flotilla.js'), '--version'], {
      env: clean({ NODE_OPTIONS }),
    }).catch((error: unknown) => error as { code: number; stderr: string });
    expect(told).toMatchObject({ code: 1 });
    expect(told.stderr).toMatch(/needs Node\.js 24 or newer; this is 20\.0\.0\.\n.*install/);
  });

  test('starts everything on one machine, serves a completion and stops', async () => {
    const dir = join(work, 'd');
    // Without the optimising compiler for WebAssembly, as all processes of the tests (packages/cli/src/testing/command.ts).
    const args = ['up', '--sim', '--json', '--port', '0', '--data-dir', dir];
    const up = spawn(process.execPath, ['--liftoff-only', join(packaged, 'bin/flotilla.js'), ...args], {
      env: clean({ HOME: home, FLOTILLA_NODE_STATUS_PORT: '0', FLOTILLA_NODE_FIND_BACKENDS: 'false' }),
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let said = '';
    let printed = '';
    up.stderr.setEncoding('utf8').on('data', (text: string) => (said += text));
    up.stdout.setEncoding('utf8').on('data', (text: string) => (printed += text));
    try {
      const line = await until(
        'it is up',
        () => {
          if (up.exitCode !== null) throw new Error(`It ended with ${up.exitCode}:\n${said}`);
          return printed.split('\n').find((text) => text.includes('"event":"ready"'));
        },
        60_000,
      );
      const { url, model, admin_key_path } = JSON.parse(line) as Record<string, string>;
      const apiKey = (await readFile(admin_key_path!, 'utf8')).trim();
      const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey });
      const answer = await openai.chat.completions.create({
        model: model!,
        messages: [{ role: 'user', content: 'Hello from the package' }],
      });
      expect(answer.choices[0]?.message.content).toContain('[simulated]');
      const status = await flotilla('node', 'status', '--json', '--state-dir', join(dir, 'node'));
      expect(JSON.parse(status.stdout)).toMatchObject({ ready: true, version: manifest.version });
      up.kill('SIGTERM');
      const [code] = (await once(up, 'exit')) as [number | null];
      expect({ code, said: code === 0 ? '' : said }).toEqual({ code: 0, said: '' });
    } finally {
      up.kill('SIGKILL');
    }
  });
});
