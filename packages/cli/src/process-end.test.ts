import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { expect, onTestFinished, test, vi } from 'vitest';

const PROGRAM = `
import { stopSignal } from ${JSON.stringify(new URL('process-end.ts', import.meta.url).href)};
void stopSignal().then((signal) => console.log('asked by', signal));
let count = 0;
// The second one follows at once, however busy the machine is.
process.on('SIGINT', () => {
  console.log('heard', ++count);
  if (count === 1) process.kill(process.pid, 'SIGINT');
});
setInterval(() => {}, 1000);
console.log('ready');
`;

test('a Ctrl-C that npm hands on as well is one; a second one ends the process at once', async () => {
  const child = spawn(process.execPath, ['--input-type=module', '--eval', PROGRAM], {
    cwd: fileURLToPath(new URL('.', import.meta.url)),
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  const ended = once(child, 'exit');
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
  const says = (text: string) => vi.waitFor(() => expect(output).toContain(text), 10_000);
  await says('ready');
  child.kill('SIGINT');
  await says('asked by SIGINT');
  await says('heard 2');
  await vi.waitFor(() => {
    child.kill('SIGINT');
    expect(child.exitCode).toBe(1);
  }, 10_000);
  expect(await ended).toEqual([1, null]);
});
