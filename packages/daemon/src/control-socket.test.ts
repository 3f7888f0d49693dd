import { stat, writeFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import {
  callDaemon,
  type ControlHandler,
  type ControlRequest,
  DaemonCallError,
  openControlSocket,
} from './control-socket.ts';
import { statePaths } from './state-dir.ts';
import { folder } from './testing/folder.ts';

async function open(handle: ControlHandler) {
  const dir = await folder();
  const socket = await openControlSocket(statePaths(dir).control, handle);
  onTestFinished(() => socket.close());
  return { dir, socket };
}

test('a verb is asked and answered, by the socket’s owner alone', async () => {
  const { dir } = await open(async (request) => ({ ok: true, verb: request.verb }));
  expect(await callDaemon(dir, { verb: 'status' })).toEqual({ ok: true, verb: 'status' });
  expect((await stat(statePaths(dir).control)).mode & 0o777).toBe(0o600);
});

test('a refusal of the daemon reaches the command', async () => {
  const { dir } = await open(async () => ({ ok: false, code: 'busy', message: 'Not now.' }));
  await expect(callDaemon(dir, { verb: 'reload' })).rejects.toMatchObject({
    code: 'busy',
    message: 'Not now.',
  });
  const broken = await open(() => Promise.reject(new Error('node.yaml: slot is not a setting')));
  await expect(callDaemon(broken.dir, { verb: 'reload' })).rejects.toThrow(/slot is not a setting/);
});

test('what is no request is answered as that', async () => {
  const { dir } = await open(async () => ({ ok: true }));
  for (const line of ['hello\n', '{"verb":"explode"}\n', `${'x'.repeat(100_000)}`]) {
    const answer = await new Promise<string>((resolve, reject) => {
      let text = '';
      const socket = connect(statePaths(dir).control, () => socket.write(line));
      socket.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
      socket.on('close', () => resolve(text)).on('error', reject);
    });
    expect(JSON.parse(answer)).toMatchObject({ ok: false, code: 'invalid_request' });
  }
});

test('a verb with a setting that it cannot have is answered with the setting and why', async () => {
  const { dir } = await open(async () => ({ ok: true }));
  await expect(callDaemon(dir, { verb: 'leave', deadline_ms: 172_800_000 })).rejects.toMatchObject({
    code: 'invalid_request',
    message: expect.stringMatching(/^deadline_ms: .*86400000/),
  });
  const unknown = { verb: 'status', colour: 'red' } as unknown as ControlRequest;
  await expect(callDaemon(dir, unknown)).rejects.toThrow(/"colour"/);
});

test('without a daemon the command says so and what to do, whether nothing is there or a crash left its socket', async () => {
  const dir = await folder();
  await expect(callDaemon(dir, { verb: 'status' })).rejects.toThrow(DaemonCallError);
  await expect(callDaemon(dir, { verb: 'status' })).rejects.toThrow(/No daemon runs on .*flotilla node run/);
  await writeFile(statePaths(dir).control, '');
  await expect(callDaemon(dir, { verb: 'status' })).rejects.toMatchObject({ code: 'not_running' });
});

test('a socket that a crash left behind is replaced', async () => {
  const dir = await folder();
  await writeFile(statePaths(dir).control, '');
  const socket = await openControlSocket(statePaths(dir).control, async () => ({ ok: true }));
  expect(await callDaemon(dir, { verb: 'status' })).toEqual({ ok: true });
  await socket.close();
});

test('closing answers first what was asked', async () => {
  const left = Promise.withResolvers<void>();
  const asked = Promise.withResolvers<void>();
  const { dir, socket } = await open(async () => {
    asked.resolve();
    await left.promise;
    return { ok: true, left: true };
  });
  const answer = callDaemon(dir, { verb: 'leave' });
  await asked.promise;
  const closed = socket.close();
  left.resolve();
  expect(await answer).toEqual({ ok: true, left: true });
  await closed;
});

test('a daemon that does not answer is not waited for beyond the limit', async () => {
  const dir = await folder();
  const server = createServer(() => {}).listen(statePaths(dir).control);
  onTestFinished(() => void server.close());
  await expect(callDaemon(dir, { verb: 'status' }, 50)).rejects.toMatchObject({ code: 'timeout' });
});

test('a path that the system cannot take is said, with what to do', async () => {
  const path = join(await folder(), 'x'.repeat(100), 'control.sock');
  await expect(openControlSocket(path, async () => ({ ok: true }))).rejects.toThrow(/shorter --state-dir/);
});
