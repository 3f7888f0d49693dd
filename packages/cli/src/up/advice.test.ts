import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import { SimBackend } from '../sim/backend.ts';
import { curlFor, reachOf, shellWord } from './advice.ts';

const run = promisify(execFile);

test.each(['chat', 'completions', 'embeddings'] as const)(
  'the curl for %s works as it is printed, whatever is in its names',
  async (operation) => {
    const dir = await mkdtemp(join(tmpdir(), "flotilla's key "));
    await writeFile(join(dir, 'admin-key'), 'flk_secret\n');
    const model = `it's "one" $HOME`;
    const backend = new SimBackend({ models: [model], api_key: 'flk_secret' });
    await backend.listen();
    const servable = { model, operation, backend: 'simulated', kind: 'openai' };
    const curl = curlFor(backend.url, join(dir, 'admin-key'), servable);
    expect(curl).not.toContain('flk_secret');
    const { stdout } = await run('sh', ['-c', curl]);
    expect(JSON.parse(stdout)).toMatchObject({ model, system_fingerprint: 'flotilla-sim' });
    await backend.close();
    await rm(dir, { recursive: true });
  },
);

test('a shell takes a word for itself', async () => {
  for (const word of ['plain', '/a/b.c', "it's", 'two words', '$(id)', '', '*', '~']) {
    const { stdout } = await run('sh', ['-c', `printf %s ${shellWord(word)}`]);
    expect(stdout).toBe(word);
  }
});

describe('how other machines reach it', () => {
  test('by the public address', () => {
    expect(reachOf('127.0.0.1', 7400, 'https://fleet.example')).toEqual({
      url: 'https://fleet.example',
      insecure: false,
    });
  });

  test('by the address that it listens on, over plain http', () => {
    expect(reachOf('192.0.2.7', 7400, undefined)).toEqual({ url: 'http://192.0.2.7:7400', insecure: true });
  });

  test('not at all on loopback; then it says how they could', () => {
    for (const host of ['127.0.0.1', 'localhost', '::1']) {
      const reach = reachOf(host, 7400, undefined);
      expect(reach.url).toBeNull();
      expect(JSON.stringify(reach)).toContain('--host 0.0.0.0');
    }
  });
});
