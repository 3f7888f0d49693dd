import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { describe, expect, onTestFinished, test, vi } from 'vitest';

const LAUNCHER = fileURLToPath(new URL('../bin/flotilla.js', import.meta.url));

/** The first process says that it is an old Node; the one it hands over to counts what it hears, until SIGTERM. */
const PROBE = `
if (process.env.AS_OLD_NODE) {
  delete process.env.AS_OLD_NODE;
  Object.defineProperty(process, 'versions', { value: { ...process.versions, node: '20.0.0' } });
} else {
  let count = 0;
  process.on('SIGINT', () => console.log('heard', ++count));
  process.on('SIGTERM', () => process.exit(console.log('in all', count)));
  setInterval(() => {}, 1000);
  console.log('launched by', process.ppid);
}`;

/** Starts the launcher with a program that hears signals, and returns when it does. */
async function launch(command: string, ...args: string[]) {
  const child: ChildProcess = spawn(command, args, {
    env: {
      ...process.env,
      NO_COLOR: '1',
      AS_OLD_NODE: '1',
      NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(PROBE)}`,
    },
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  let output = '';
  child.stdout?.setEncoding('utf8').on('data', (text: string) => (output += text));
  const says = (text: string) => vi.waitFor(() => expect(output).toContain(text), 10_000);
  await says('launched by');
  const pid = Number(/launched by (\d+)/.exec(output)?.[1]);
  /** SIGTERM comes after all that was sent before. */
  const heardInAll = async () => {
    process.kill(pid, 'SIGTERM');
    await once(child, 'close');
    return Number(/in all (\d+)/.exec(output)?.[1]);
  };
  return { child, pid, says, heardInAll };
}

describe('under an old Node, the program that is handed over to hears Ctrl-C once', () => {
  test('without a terminal', async () => {
    const { pid, says, heardInAll } = await launch(process.execPath, LAUNCHER, '--version');
    process.kill(pid, 'SIGINT');
    await says('heard 1');
    expect(await heardInAll()).toBe(1);
  });

  // `script` of util-linux makes a terminal; elsewhere it takes other arguments.
  test.skipIf(process.platform !== 'linux')('in a terminal, with its input redirected', async () => {
    const line = `trap : INT; '${process.execPath}' '${LAUNCHER}' --version < /dev/null`;
    const { child, pid, says, heardInAll } = await launch('script', '-qec', line, '/dev/null');
    // The launcher comes second, so that one signal of its own would not be lost in that of the terminal.
    process.kill(pid, 'SIGSTOP');
    child.stdin?.write('\u0003');
    await says('heard 1');
    process.kill(pid, 'SIGCONT');
    expect(await heardInAll()).toBe(1);
  });
});
