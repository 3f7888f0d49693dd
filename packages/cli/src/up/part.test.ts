import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { message, Part } from './part.ts';

describe('a part that cannot be started', () => {
  /** Its program is not there, as after an update that moved it. */
  async function startNothing() {
    const dir = await mkdtemp(join(tmpdir(), 'flotilla-part-'));
    onTestFinished(() => rm(dir, { recursive: true }));
    const part = new Part('test', { args: () => [], log: join(dir, 'test.log') });
    const { execPath } = process;
    process.execPath = join(dir, 'nothing');
    try {
      return { part, child: part.start() };
    } finally {
      process.execPath = execPath;
    }
  }

  test('has ended, and nobody waits for its end', async () => {
    const { part, child } = await startNothing();
    await once(child, 'error');
    expect(part.running).toBe(false);
    await part.stop();
  });

  test('can be stopped at once', async () => {
    const { part } = await startNothing();
    await part.stop();
    expect(part.running).toBe(false);
  });

  test('has no message, whenever it is waited for', async () => {
    const { part, child } = await startNothing();
    await expect(message(child, 'ready')).rejects.toThrow('It ended before it was ready.');
    await part.stop();
    await expect(message(child, 'ready')).rejects.toThrow('It ended before it was ready.');
  });
});
