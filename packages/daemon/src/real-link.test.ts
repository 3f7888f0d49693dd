import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { expect, onTestFinished, test } from 'vitest';
import { runDaemon } from './run-daemon.ts';
import { enrolledDir } from './testing/enrolled-dir.ts';
import { FakeServer, openaiRoutes, vllmRoutes } from './testing/fake-servers.ts';
import { recordedLog } from './testing/recorded-log.ts';
import { ScriptedControl } from './testing/scripted-control.ts';
import { until } from './testing/until.ts';

test('a whole daemon: found, proved, connected, serving, its backend’s death and return told, drained and gone', async () => {
  const backend = new FakeServer();
  backend.routes = vllmRoutes('m');
  await backend.start();
  const control = new ScriptedControl();
  await control.listen();
  const paths = await enrolledDir(control.url);
  const stop = new AbortController();
  const log = recordedLog();
  const ended = runDaemon({
    state_dir: paths.dir,
    flags: { status_port: 0, labels: { gpu: '4090' } },
    environment: {},
    log,
    handle_signals: false,
    signal: stop.signal,
    find_ports: [backend.port],
  });
  onTestFinished(async () => {
    stop.abort();
    await ended;
    await Promise.all([backend.stop(), control.close()]);
  });
  const id = `vllm-${backend.port}`;
  const heartbeat = async () =>
    JSON.parse(await readFile(paths.heartbeat, 'utf8')) as Record<string, unknown>;

  const registration = await control.message('node.register');
  expect(control.authorizations).toEqual(['Bearer fln_secret']);
  expect(registration).toMatchObject({
    boot_id: (await heartbeat())['boot_id'],
    descriptor: {
      name: 'box',
      labels: { gpu: '4090' },
      backends: [{ id, kind: 'vllm', models: [{ id: 'm' }] }],
    },
    backends: [{ id, health: 'healthy' }],
  });
  await control.message('node.heartbeat');
  await until(async () => expect(await heartbeat()).toMatchObject({ status: 'running', link: 'connected' }));

  const stream = control.offer('job_1', { backend: id });
  await control.message('job.completed', 'job_1');
  expect(JSON.parse(control.stream(stream).body.toString())).toHaveProperty('choices');

  // The next request finds the server gone: from then on the beat says so.
  await backend.stop();
  const seen = control.log.length;
  control.offer('job_2', { backend: id });
  expect(await control.message('job.failed', 'job_2')).toMatchObject({ retryable: true });
  const told = (health: string) =>
    control.until(() =>
      control.log
        .slice(seen)
        .some((message) => message.type === 'node.heartbeat' && message.backends[0]?.health === health),
    );
  await told('down');
  await backend.start();
  const back = control.log.length;
  await control.until(() =>
    control.log
      .slice(back)
      .some((message) => message.type === 'node.heartbeat' && message.backends[0]?.health === 'healthy'),
  );

  stop.abort();
  await control.message('node.deregister');
  expect(await ended).toBe(0);
  expect(await heartbeat()).toMatchObject({ status: 'stopped', link: 'disconnected' });
  expect(JSON.stringify(log.lines)).not.toContain('fln_secret');
});

test('revoked with a request at work: `stopping` is on disk before the backend’s request is given up', async () => {
  const backend = new FakeServer();
  const held = Promise.withResolvers<void>();
  const on_disk_at_abort = Promise.withResolvers<unknown>();
  const status = () => (JSON.parse(readFileSync(paths.heartbeat, 'utf8')) as { status: string }).status;
  backend.routes = {
    ...openaiRoutes(['m']),
    '/v1/chat/completions': (_body, { socket }) => {
      socket.once('close', () => on_disk_at_abort.resolve(status()));
      held.resolve();
      return { hang: true };
    },
  };
  await backend.start();
  const control = new ScriptedControl();
  await control.listen();
  const paths = await enrolledDir(control.url);
  onTestFinished(async () => {
    await Promise.all([backend.stop(), control.close()]);
  });
  const ended = runDaemon({
    state_dir: paths.dir,
    flags: { status_port: 0, backends: [{ id: 'gpu', url: backend.url, probe: 'list' }] },
    environment: {},
    log: recordedLog(),
    handle_signals: false,
    find_ports: [],
  });
  await control.message('node.heartbeat');
  control.offer('job_1', { backend: 'gpu' });
  await held.promise;
  control.socket?.close(4001);
  expect(await on_disk_at_abort.promise).toBe('stopping');
  expect(await ended).toBe(3);
});
