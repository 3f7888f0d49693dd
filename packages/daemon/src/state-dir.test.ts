import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { writeFileAtomically } from './atomic-file.ts';
import { openStateDir, readCredential, stateDirOf, writeCredential } from './state-dir.ts';
import { folder } from './testing/folder.ts';
import { until } from './testing/until.ts';

const credential = {
  url: 'https://fleet.example',
  node_id: 'node_1',
  name: 'box',
  credential: 'fln_secret',
  insecure: false,
  enrolled_at: '2030-01-01T00:00:00.000Z',
};

test('the directory is what was given, else what the environment says, else ~/.flotilla/node', () => {
  expect(stateDirOf('/srv/node', { FLOTILLA_NODE_STATE_DIR: '/other' })).toBe('/srv/node');
  expect(stateDirOf(undefined, { FLOTILLA_NODE_STATE_DIR: '/other' })).toBe('/other');
  expect(stateDirOf(undefined, {})).toBe(join(homedir(), '.flotilla', 'node'));
  expect(stateDirOf('~/x', {})).toBe(join(homedir(), 'x'));
});

test('the directory and the credential are their owner’s alone', async () => {
  const paths = await openStateDir(join(await folder(), 'node'));
  await writeCredential(paths, credential);
  expect((await stat(paths.dir)).mode & 0o777).toBe(0o700);
  expect((await stat(paths.credential)).mode & 0o777).toBe(0o600);
  expect(await readCredential(paths)).toEqual(credential);
});

test('a credential that others could read is closed again when it is read', async () => {
  const paths = await openStateDir(await folder());
  await writeCredential(paths, credential);
  await chmod(paths.credential, 0o644);
  await readCredential(paths);
  expect((await stat(paths.credential)).mode & 0o777).toBe(0o600);
});

test('no credential is null, a damaged one is an error that says what to do and shows none of it', async () => {
  const paths = await openStateDir(await folder());
  expect(await readCredential(paths)).toBeNull();
  await writeFile(paths.credential, '{"credential": "fln_secret"');
  await expect(readCredential(paths)).rejects.toThrow(/damaged.*flotilla join/s);
  await expect(readCredential(paths)).rejects.not.toThrow(/fln_secret/);
});

test('a file under constant replacement is whole at every read, and after kill -9 of its writer', async () => {
  const path = join(await folder(), 'file.json');
  await writeFileAtomically(path, JSON.stringify({ text: 'x'.repeat(20_000) }));
  const script = `
    const { writeFileAtomically } = await import(${JSON.stringify(join(import.meta.dirname, 'atomic-file.ts'))});
    for (let n = 0; ; n++) await writeFileAtomically(${JSON.stringify(path)}, JSON.stringify({ n, text: 'x'.repeat(20_000) }));`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: 'ignore' });
  onTestFinished(() => void child.kill('SIGKILL'));
  const seen = new Set<unknown>();
  await until(async () => {
    seen.add((JSON.parse(await readFile(path, 'utf8')) as { n?: number }).n);
    expect(seen.size).toBeGreaterThan(20);
  });
  child.kill('SIGKILL');
  await once(child, 'exit');
  expect((JSON.parse(await readFile(path, 'utf8')) as { text: string }).text).toHaveLength(20_000);
  // What a crash leaves beside it does not disturb the next writer.
  await writeFileAtomically(path, '{}');
  expect(await readdir(join(path, '..'))).toEqual(['file.json']);
});
