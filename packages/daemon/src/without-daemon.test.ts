import { access, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { lockStateDir, readCredential, statePaths } from './state-dir.ts';
import { enrolledDir } from './testing/enrolled-dir.ts';
import { folder } from './testing/folder.ts';
import { forgetEnrolment, replaceCredential } from './without-daemon.ts';

test('a rotated credential takes the place of the old one; all else that was kept stays', async () => {
  const paths = await enrolledDir('http://127.0.0.1:1');
  const before = await readCredential(paths);
  expect(await replaceCredential(paths.dir, 'fln_new')).toEqual({ name: 'box', url: 'http://127.0.0.1:1' });
  expect(await readCredential(paths)).toEqual({ ...before, credential: 'fln_new' });
});

test('under a daemon that runs nothing is replaced: it is the one writer', async () => {
  const paths = await enrolledDir('http://127.0.0.1:1');
  const lock = await lockStateDir(paths);
  await expect(replaceCredential(paths.dir, 'fln_new')).rejects.toThrow(/Another Flotilla daemon/);
  lock.release();
  expect(await readCredential(paths)).toMatchObject({ credential: 'fln_secret' });
});

test('a machine that leaves has neither its credential any more nor the results that nobody will ask for', async () => {
  const paths = await enrolledDir('http://127.0.0.1:1');
  await mkdir(paths.journal);
  await writeFile(join(paths.journal, 'job_a.1'), 'an answer');
  expect(await forgetEnrolment(paths.dir)).toEqual({ name: 'box', url: 'http://127.0.0.1:1' });
  for (const gone of [paths.credential, paths.journal]) await expect(access(gone)).rejects.toThrow('ENOENT');
});

test('where no machine has joined nothing is left behind', async () => {
  const dir = await folder();
  expect(await replaceCredential(dir, 'fln_new')).toBeNull();
  await expect(access(statePaths(dir).lock)).rejects.toThrow('ENOENT');
});
