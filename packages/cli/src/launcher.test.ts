import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFile, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, expect, onTestFinished, test, vi } from 'vitest';

const shell = promisify(execFile);
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

describe('the package under an old Node', () => {
  const OLD = `Object.defineProperty(process, 'versions', { value: { ...process.versions, node: '20.0.0' } });`;

  /** As npm installs it, in a project or with -g. */
  async function installed() {
    const dir = await mkdtemp(join(tmpdir(), "its '$HOME "));
    onTestFinished(() => rm(dir, { recursive: true }));
    const bin = join(dir, 'node_modules/flotilla/bin');
    await mkdir(bin, { recursive: true });
    await mkdir(join(bin, '../dist'));
    await copyFile(LAUNCHER, join(bin, 'flotilla.js'));
    await writeFile(join(bin, '../package.json'), '{"type": "module"}');
    await writeFile(join(bin, '../dist/main.js'), "console.log('handed over');");
    const options = `--import=data:text/javascript,${encodeURIComponent(OLD)}`;
    const run = () =>
      shell(process.execPath, [options, join(bin, 'flotilla.js')], { env: { PATH: dir } }).catch(
        (error: unknown) => error as { code: number; stdout: string; stderr: string },
      );
    return { dir, run };
  }

  test('says what to type, and what that leaves behind is found', async () => {
    const { dir, run } = await installed();
    const told = await run();
    expect(told).toMatchObject({ code: 1, stdout: '' });
    const [, command = ''] = /^ {2}(npm install .*)$/m.exec(told.stderr) ?? [];
    expect(command).toMatch(/ node@npm:node-[a-z0-9-]+@24$/);
    // Stands for npm, which puts a package under the name before `@npm:`; and its Node for one that says how old it is.
    const npm = `#!/bin/sh
mkdir -p "$3/node_modules/node/bin"
echo '{"version": "24.0.0"}' > "$3/node_modules/node/package.json"
printf '#!/bin/sh\\nshift; exec "${process.execPath}" "$@"\\n' > "$3/node_modules/node/bin/node"
chmod +x "$3/node_modules/node/bin/node"
`;
    await writeFile(join(dir, 'npm'), npm, { mode: 0o755 });
    await shell('/bin/sh', ['-c', command], { env: { PATH: `${dir}:/usr/bin:/bin` } });
    expect(await run()).toMatchObject({ stdout: 'handed over\n', stderr: '' });
  });
});

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
