import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { runDaemon } from './run-daemon.ts';
import type { StatePaths } from './state-dir.ts';
import { SAME_KEY_PRESS_MS } from './stop-requests.ts';
import { enrolledDir } from './testing/enrolled-dir.ts';
import { recordedLog } from './testing/recorded-log.ts';
import { until } from './testing/until.ts';

const STAND_IN = new URL('./testing/stand-in-link.ts', import.meta.url);

async function start(
  environment: NodeJS.ProcessEnv = {},
): Promise<{ paths: StatePaths; child: ChildProcess; output: () => string }> {
  const paths = await enrolledDir('http://127.0.0.1:1');
  // `running` is on disk a moment before the link's thread is there to be told to drain.
  const script = `
    const { BroadcastChannel } = await import('node:worker_threads');
    const channel = new BroadcastChannel('http://127.0.0.1:1');
    channel.onmessage = ({ data }) => 'started' in data && process.stdout.write('the link has started');
    channel.unref();
    const { runDaemon } = await import(${JSON.stringify(join(import.meta.dirname, 'run-daemon.ts'))});
    process.exitCode = await runDaemon({
      state_dir: ${JSON.stringify(paths.dir)}, flags: { status_port: 0 }, find_ports: [], link_script: new URL(${JSON.stringify(STAND_IN.href)}),
    });`;
  // A file, because a thread inherits the options of the program, and could not start with those of `-e`.
  const file = join(paths.dir, 'daemon.mjs');
  await writeFile(file, script);
  const child = spawn(process.execPath, [file], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...environment },
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  let output = '';
  child.stderr!.setEncoding('utf8').on('data', (chunk: string) => (output += chunk));
  let started = '';
  child.stdout!.setEncoding('utf8').on('data', (chunk: string) => (started += chunk));
  await until(() => expect(started).toBe('the link has started'));
  return { paths, child, output: () => output };
}

test('SIGTERM drains, the second one ends it at once; its log is JSON and holds no credential', async () => {
  const { child, output, paths } = await start({ FLOTILLA_LOG_LEVEL: 'debug' });
  const asked_ms = performance.now();
  child.kill('SIGTERM');
  await until(async () =>
    expect(JSON.parse(await readFile(paths.heartbeat, 'utf8'))).toMatchObject({ status: 'stopping' }),
  );
  const ended = once(child, 'exit');
  const atOnce = () => expect(output()).toContain('Stopping at once');
  const heard = () => vi.waitFor(atOnce, { timeout: SAME_KEY_PRESS_MS, interval: 10 });
  do child.kill('SIGTERM');
  while (
    !(await heard().then(
      () => true,
      () => false,
    ))
  );
  expect(await ended).toEqual([1, null]);
  // What comes sooner is the same key press, handed on by npm, and cuts nothing.
  expect(performance.now() - asked_ms).toBeGreaterThanOrEqual(SAME_KEY_PRESS_MS);
  const lines = output()
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  expect(lines.some(({ msg }) => String(msg).startsWith('Stopping'))).toBe(true);
  expect(output()).not.toContain('fln_secret');
});

test('after kill -9 the next one starts at once on the same directory', async () => {
  const { child, paths } = await start();
  child.kill('SIGKILL');
  await once(child, 'exit');
  expect(JSON.parse(await readFile(paths.heartbeat, 'utf8'))).toMatchObject({ status: 'running' });
  const stop = new AbortController();
  const ended = runDaemon({
    state_dir: paths.dir,
    flags: { status_port: 0 },
    environment: {},
    log: recordedLog(),
    handle_signals: false,
    signal: stop.signal,
    link_script: STAND_IN,
    find_ports: [],
    on_event: ({ type }) => type === 'backends' && stop.abort(),
  });
  expect(await ended).toBe(0);
});
