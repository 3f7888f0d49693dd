import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, openSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { fileURLToPath } from 'node:url';
import { expect, test, vi } from 'vitest';

const FULL = '/dev/full';
const flotilla = fileURLToPath(new URL('../../bin/flotilla.js', import.meta.url));

/** A process whose stdout is a disk without room. */
function startOnFullDisk(...args: string[]) {
  const child = spawn(process.execPath, [flotilla, ...args], {
    stdio: ['ignore', openSync(FULL, 'w'), 'pipe'],
  });
  let said = '';
  child.stderr!.setEncoding('utf8').on('data', (text: string) => (said += text));
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve));
  return { child, ended, said: () => said };
}

test.skipIf(!existsSync(FULL))('output that cannot be written fails the command, in one line', async () => {
  const { ended, said } = startOnFullDisk('--help');
  expect(await ended).toBe(1);
  expect(said()).toMatch(/^error: The output cannot be written: ENOSPC.*\n$/);
});

test.skipIf(!existsSync(FULL))('what is there to run goes on without it', async () => {
  const port = await freePort();
  const { child, ended } = startOnFullDisk('sim', 'backend', '--port', String(port));
  const ask = () => fetch(`http://127.0.0.1:${port}/v1/models`);
  await vi.waitFor(ask, 15_000);
  // What it says of itself has met the full disk before a second answer comes.
  expect((await ask()).status).toBe(200);
  expect(child.exitCode).toBeNull();
  child.kill();
  await ended;
});

/** Asked for: the program would tell a port of its own only on the disk that is full. */
async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}
