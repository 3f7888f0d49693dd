import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { type Outcome, run } from '../../packages/cli/src/testing/command.ts';
import { complaintOf } from '../support/command-line.ts';
import { openPlane, type TestPlane } from '../support/plane.ts';
import { chatAnswer, type ScriptedBackend, startScriptedBackend } from '../support/scripted-backend.ts';

/** `flotilla providers` and `flotilla routes` as an operator types them, and what becomes of it. */
vi.setConfig({ testTimeout: 60_000 }); // some twenty processes, one after the other

const KEY = 'sk-upstream-0123456789abcdef';
let plane: TestPlane;
let upstream: ScriptedBackend;

beforeAll(async () => {
  plane = await openPlane({ FLOTILLA_SECRET_KEY: 's'.repeat(40) });
  upstream = await startScriptedBackend(
    (_request, response) => {
      response.setHeader('content-type', 'application/json');
      response.end(chatAnswer('from upstream'));
    },
    ['gpt-x'],
  );
});
afterAll(async () => {
  await plane.close();
  await upstream.close();
});

function flotilla(words: string[], env: Record<string, string> = {}, input = ''): Promise<Outcome> {
  const asked = { FLOTILLA_URL: plane.control.url, FLOTILLA_API_KEY: plane.admin_key };
  return run(words, { ...asked, ...env }, input);
}
const typed = (line: string, env?: Record<string, string>, input?: string) =>
  flotilla(line.split(' '), env, input);
/** What it did, with what it printed for programs. */
async function done<T = Record<string, unknown>>(line: string): Promise<T> {
  const outcome = await typed(`${line} --json`);
  expect({ line, ...outcome }).toMatchObject({ code: 0, stderr: '' });
  return JSON.parse(outcome.stdout) as T;
}
const chat = (model: string) =>
  plane.call('POST', '/v1/chat/completions', { key: plane.admin_key, body: { model, messages: [] } });

describe('an operator', () => {
  test('adds a provider with its key from a variable, sees how it is, and changes it', async () => {
    expect((await typed('providers')).stderr).toContain('flotilla providers create NAME URL --key-env');
    const made = await typed(`providers create up ${upstream.url} --key-env UP_KEY --concurrency 2`, {
      UP_KEY: KEY,
    });
    expect(made).toMatchObject({ code: 0, stdout: '' });
    expect(made.stderr).toContain('flotilla routes create MODEL --target up=MODEL');
    expect((await typed('providers probe up')).stdout).toMatch(/health +healthy\n[^]*models +gpt-x/);
    expect((await typed('providers')).stdout).toMatch(/NAME +HEALTH +BUSY +KEY[^]*up +healthy +0\/2 +sealed/);

    const changed = await typed('providers update up --key-stdin --idle-timeout 30s', {}, `${KEY}-new\n`);
    expect(changed.stdout).toMatch(/key +sealed, sent in authorization\n[^]*idle timeout +30/);
    const shown = await typed('providers show up');
    for (const { stdout, stderr } of [made, changed, shown]) expect(stdout + stderr).not.toContain(KEY);
  });

  test('makes a route to it, is told where a request would go, and it goes there', async () => {
    const made = await typed(
      'routes create fast --target up=gpt-x --target nodes=llama3@gpu=yes --alias default',
    );
    expect(made).toMatchObject({ code: 0, stdout: '' });
    expect(made.stderr).toContain('flotilla routes explain fast');
    expect((await typed('routes')).stdout).toMatch(
      /MODEL +TARGETS +ALIASES +STATE\nfast +up=gpt-x → nodes=llama3@gpu=yes +default +enabled/,
    );

    upstream.requests.length = 0;
    const dry = await typed('routes explain default');
    expect(dry.stderr).toContain('It would go to the provider up, as gpt-x.');
    expect(dry.stdout).toMatch(
      /→ 1 +up=gpt-x +up +could take it\n +2 +nodes=llama3 +– +nobody there has the model/,
    );
    expect(upstream.requests).toEqual([]);

    expect((await chat('default')).text).toContain('from upstream');
    expect(upstream.requests).toMatchObject([{ headers: { authorization: `Bearer ${KEY}-new` } }]);
  });

  test('takes provider and route out and in again, and forgets them in order', async () => {
    expect(await done('providers disable up')).toMatchObject({ enabled: false });
    expect((await typed('routes explain fast')).stdout).toMatch(/1 +up=gpt-x +up +it is disabled/);
    expect(await done('providers enable up')).toMatchObject({ enabled: true });

    expect(await done('routes disable fast')).toMatchObject({ enabled: false });
    expect((await chat('fast')).status).toBe(404);
    expect((await typed('routes explain fast')).stderr).toMatch(/disabled/);
    expect(await done('routes enable fast')).toMatchObject({ enabled: true });
    const changed = await done('routes update fast --name quick --no-aliases --target up=gpt-x');
    expect(changed).toMatchObject({ name: 'quick', aliases: [], targets: [{ model: 'gpt-x' }] });

    const kept = await typed('providers delete up');
    expect(kept).toMatchObject({ code: 1, stdout: '' });
    expect(kept.stderr).toMatch(
      /Routes send requests to this provider \(quick\): change or delete them first/,
    );
    expect(await done('routes delete quick')).toMatchObject({ deleted: true });
    expect(await done('providers delete up')).toMatchObject({ deleted: true });
    expect((await typed('providers show up')).stderr).toContain('There is no provider up.');
  });
});

describe('bad input', () => {
  test.each([
    ['providers create x', "missing required argument 'url'"],
    ['providers create x https://up.test/v1 --probe often', 'Allowed choices are models, none'],
    ['providers create x https://up.test/v1 --idle-timeout 2h', 'Between 1ms and 1h'],
    ['routes create x --target gpt-x', 'PROVIDER=MODEL or nodes=MODEL'],
  ])('flotilla %s: is not read', (line, message) => {
    expect(complaintOf(line.split(' '))).toContain(message);
  });

  test('that is read but makes no sense is wrong usage, told before anything is asked', async () => {
    const cases = [
      ['providers create x https://up.test/v1 --key-env NO_SUCH_KEY', 'NO_SUCH_KEY is not set, or empty'],
      ['providers create x https://up.test/v1 --key-stdin', 'Nothing came on stdin'],
      ['providers create x https://up.test/v1 --key-env A --key-stdin', 'one of --key-stdin and --key-env'],
      ['providers update x', 'Nothing to change was given'],
      ['routes create x', 'A route needs a target'],
      ['routes update x', 'Nothing to change was given'],
    ] as const;
    // Where nothing listens: it is not asked.
    const nowhere = { FLOTILLA_URL: 'http://127.0.0.1:9' };
    const outcomes = await Promise.all(cases.map(([line]) => typed(line, nowhere)));
    for (const [index, [line, message]] of cases.entries()) {
      expect({ line, ...outcomes[index]! }).toMatchObject({
        code: 2,
        stdout: '',
        stderr: expect.stringContaining(message),
      });
    }
  });

  test('that only the control plane can judge is refused in its words, and nothing is made', async () => {
    const refused = await Promise.all([
      typed('providers create x ftp://up.test/v1'),
      typed('routes create x --target nobody=gpt-x'),
      typed('routes explain x --key key_nobody'),
      typed('routes show x'),
    ]);
    expect(refused.map(({ code }) => code)).toEqual([1, 1, 1, 1]);
    expect(refused[0]!.stderr).toMatch(/base_url/);
    expect(refused[1]!.stderr).toMatch(/no provider/);
    expect(refused[2]!.stderr).toMatch(/key_nobody/);
    expect(refused[3]!.stderr).toContain('There is no route x.');
    expect([await done('providers'), await done('routes')]).toEqual([[], []]);
  });
});
