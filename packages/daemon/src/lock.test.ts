import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { takeLock } from './lock.ts';
import { lockStateDir, openStateDir, StateDirError } from './state-dir.ts';
import { folder } from './testing/folder.ts';

/** Another process that takes the lock, says so, and holds it until it is killed. */
async function holder(path: string): Promise<ChildProcess> {
  const script = `
    const { takeLock } = await import(${JSON.stringify(join(import.meta.dirname, 'lock.ts'))});
    console.log(takeLock(${JSON.stringify(path)}) === null ? 'refused' : 'held');
    setInterval(() => {}, 1e6);`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  const [said] = (await once(child.stdout!, 'data')) as [Buffer];
  expect(said.toString().trim()).toBe('held');
  return child;
}

async function killed(child: ChildProcess): Promise<void> {
  child.kill('SIGKILL');
  await once(child, 'exit');
}

test('a second process is refused while the first lives, and let in the moment it was killed with -9', async () => {
  const path = join(await folder(), 'lock');
  const first = await holder(path);
  expect(takeLock(path)).toBeNull();
  await killed(first);
  const lock = takeLock(path);
  expect(lock).not.toBeNull();
  lock?.release();
});

test('a lock that was released can be taken again, by this process and by others', async () => {
  const path = join(await folder(), 'lock');
  const lock = takeLock(path);
  expect(takeLock(path)).toBeNull();
  lock?.release();
  lock?.release();
  await holder(path);
  expect(takeLock(path)).toBeNull();
});

test('a second daemon on a directory is told which process has it and what to do', async () => {
  const paths = await openStateDir(await folder());
  const first = await holder(paths.lock);
  await writeFile(paths.heartbeat, JSON.stringify({ pid: first.pid, status: 'running' }));
  await expect(lockStateDir(paths)).rejects.toThrow(StateDirError);
  await expect(lockStateDir(paths)).rejects.toThrow(
    new RegExp(`Another Flotilla daemon \\(process ${first.pid}\\) uses .*--state-dir`),
  );
});

test('a heartbeat file that cannot be read hides nothing but the process number', async () => {
  const paths = await openStateDir(await folder());
  await holder(paths.lock);
  await writeFile(paths.heartbeat, '{"pid": 1');
  await expect(lockStateDir(paths)).rejects.toThrow(/Another Flotilla daemon uses/);
});
