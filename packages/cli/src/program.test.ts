import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import type { ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Command } from 'commander';
import { afterEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import { buildProgram, loadCommands } from './program.ts';
import { run, start } from './testing/command.ts';
import { FakeControl } from './testing/fake-control.ts';
import { lanAddress } from './up/advice.ts';

let server: FakeControl | undefined;
afterEach(() => server?.close());

async function serve(routes: Record<string, unknown>, host?: string): Promise<FakeControl> {
  server = new FakeControl(routes);
  await server.listen(host);
  return server;
}

const COMMANDS = [
  'audit',
  'backup',
  'doctor',
  'up',
  'control',
  'join',
  'node run',
  'node status',
  'node drain',
  'node leave',
  'node service install',
  'node service uninstall',
  'node service status',
  'node credential',
  'nodes list',
  'nodes models',
  'nodes show',
  'nodes cordon',
  'nodes update',
  'nodes uncordon',
  'nodes drain',
  'nodes rotate',
  'nodes revoke',
  'nodes delete',
  'jobs list',
  'jobs show',
  'jobs explain',
  'jobs cancel',
  'jobs submit',
  'jobs watch',
  'jobs result',
  'jobs delete',
  'models discover',
  'models list',
  'keys list',
  'keys create',
  'keys show',
  'keys limits',
  'keys update',
  'keys revoke',
  'tokens list',
  'tokens create',
  'tokens delete',
  'providers list',
  'providers show',
  'providers create',
  'providers update',
  'providers enable',
  'providers disable',
  'providers probe',
  'providers delete',
  'routes list',
  'routes show',
  'routes explain',
  'routes create',
  'routes update',
  'routes enable',
  'routes disable',
  'routes delete',
  'usage',
  'chat',
  'sim backend',
  'restore',
  'store copy',
];

describe('help', () => {
  test('of every command says what it does and has an example', async () => {
    const found = buildProgram(await loadCommands()).commands.flatMap((group) =>
      verbsOf(group, group.name()),
    );
    expect(found.map(([name]) => name).sort()).toEqual(COMMANDS.toSorted());
    for (const group of ['jobs', 'nodes']) {
      expect((await run([group, '--help'])).stdout).toContain(`\nExamples:\n  $ flotilla ${group}`);
    }
    for (const [name, help] of found) {
      expect(help).toContain(`Usage: flotilla ${name}`);
      expect(help).toMatch(/Examples:\n {2}\$ .*(flotilla|curl)/);
      // But for what is typed: that is copied, and a line end in it would be typed too.
      const wide = help.split('\n').filter((line) => line.length > 80 && !line.startsWith('  $ '));
      expect(wide).toEqual([]);
    }
  });

  test('goes to stdout and ends with 0', async () => {
    const program = await run(['--help']);
    expect(program).toMatchObject({ code: 0, stderr: '' });
    for (const word of ['up', 'join', 'nodes', 'keys', 'chat', 'sim']) {
      expect(program.stdout).toContain(`\n  ${word}`);
    }
    const command = await run(['nodes', 'show', '--help']);
    expect(command).toMatchObject({ code: 0, stderr: '' });
    expect(command.stdout).toContain('Usage: flotilla nodes show [options] <node>');
  });
});

/** The commands that do something, by their whole names; a group only has others. */
function verbsOf(command: Command, name: string): (readonly [string, string])[] {
  if (command.commands.length === 0) return [[name, helpOf(command)]];
  return command.commands.flatMap((verb) => verbsOf(verb, `${name} ${verb.name()}`));
}

/** What `--help` prints, with what is added to it. */
function helpOf(command: Command): string {
  let help = '';
  command.configureOutput({ writeOut: (text) => (help += text) });
  command.outputHelp();
  return help;
}

describe('wrong usage ends with 2 and says what was meant', () => {
  test.each([
    ['nodess', 'Did you mean nodes?'],
    ['nodes shwo', 'Did you mean show?'],
    ['nodes --jsn', 'Did you mean --json?'],
    ['up --prot 1', 'Did you mean --port?'],
    ['nodes show', "missing required argument 'node'"],
    ['join http://127.0.0.1:1', '--token'],
    ['join http://127.0.0.1:1 --token nonsense', 'begins with fle_'],
    ['usage --by color', 'Allowed choices are model, key, node, provider, day'],
    ['nodes drain x --deadline 5', 'Write it like 90s'],
    ['nodes drain x --deadline 2d', '1d at most'],
    ['jobs submit night.jsonl --message x', 'not both'],
    ['jobs submit -m x', 'Give a file, --message, or a request on stdin'],
    ['node drain --deadline 25h', '1d at most'],
    ['node leave --deadline 2d', '1d at most'],
    ['keys create x --admin --scope jobs', '--admin may do everything'],
    ['keys update key_1', 'Nothing to change'],
    ['nodes update attic', 'Nothing to change'],
    ['sim backend --fault sulk', 'There are: '],
    ['models --url localhost:7400', 'is no address'],
    ['up --port 65536', '65535 at most'],
    ['join nowhere --token fle_x --state-dir /nonexistent', 'is no http or https address'],
    ['keys create x --expires soon', '30d (from now)'],
    ['keys create x --token-budget 1000', '1000000/month or 500k/day'],
    ['keys create x --token-budget 1000/year', 'day, week, month, total'],
    ['keys create x --token-budget 0/day', '1 is the least'],
    ['keys create x --tokens-per-minute 1.5k', 'A whole number is expected'],
    ['usage --since soon', '24h (ago)'],
  ])('flotilla %s', async (line, message) => {
    const { code, stdout, stderr } = await run(line.split(' '));
    expect(stderr).toContain(message);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
  });

  test('a setting of `join`, which then uses no token', async () => {
    const control = await serve({});
    const dir = await mkdtemp(join(tmpdir(), 'flotilla-cli-'));
    onTestFinished(() => rm(dir, { recursive: true }));
    const args = ['join', control.url, '--token', 'fle_x', '--state-dir', dir, '--backend', '127.0.0.1:9000'];
    const { code, stdout, stderr } = await run(args);
    expect(stderr).toContain('"127.0.0.1:9000" is no http or https address');
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    const environment = { FLOTILLA_NODE_STATUS_PORT: 'many' };
    expect(await run(args.slice(0, -2), environment)).toMatchObject({ code: 2 });
    expect(control.asked).toEqual([]);
  });

  test('a setting of the environment', async () => {
    const { code, stderr } = await run(['control'], { FLOTILLA_PORT: 'many' });
    expect(stderr).toContain('FLOTILLA_PORT is "many"; it must be a whole number');
    expect(code).toBe(2);
  });
});

describe('a failure ends with 1, on stderr, with what to do next', () => {
  test('nothing listens', async () => {
    const { code, stdout, stderr } = await run(['models'], {
      FLOTILLA_URL: 'http://127.0.0.1:9',
      FLOTILLA_API_KEY: 'flk_x',
    });
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toMatch(/^error: http:\/\/127\.0\.0\.1:9 cannot be reached: .*\nIs it running\?/);
  });

  test('the server refuses; with --json for a program', async () => {
    const control = await serve({});
    const { code, stderr } = await run(['nodes', 'show', 'node_x', '--json'], control.environment);
    expect(code).toBe(1);
    expect(JSON.parse(stderr)).toMatchObject({
      error: {
        code: 'not_found',
        status: 404,
        request_id: 'req_fake',
        message: expect.stringContaining('node_x'),
      },
    });
  });

  test('the server refuses; a person gets its code and the id of the request, too', async () => {
    const control = await serve({});
    const { stderr } = await run(['nodes', 'show', 'node_x'], control.environment);
    expect(stderr).toMatch(/^error: There is no .*node_x.* \(not_found, request req_fake\)\n/);
  });

  test.each(['', '--json'])('the key that was to be revoked is still valid %s', async (flag) => {
    const flags = flag === '' ? [] : [flag];
    const control = await serve({
      'DELETE /api/v1/keys/key_1': { id: 'key_1', name: 'ci', revoked_at: null },
    });
    const { code, stdout, stderr } = await run(['keys', 'revoke', 'key_1', ...flags], control.environment);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toContain('did not revoke key_1');
  });

  test('there is no such thing; it says where to look', async () => {
    const refused = (response: ServerResponse) => {
      response.writeHead(404, { 'content-type': 'application/json' });
      response.end(JSON.stringify({ error: { message: 'There is no job "job_1".', code: 'not_found' } }));
    };
    const control = await serve({ 'GET /api/v1/jobs/job_1': refused });
    const { code, stderr } = await run(['jobs', 'show', 'job_1'], control.environment);
    expect({ code, stderr }).toEqual({
      code: 1,
      stderr: 'error: There is no job "job_1". (not_found)\nSee which there are: flotilla jobs\n',
    });
  });

  test('there is no such model; it says with which key to look, as one for jobs may not', async () => {
    const refused = (response: ServerResponse) => {
      response.writeHead(404, { 'content-type': 'application/json' });
      response.end(JSON.stringify({ error: { message: 'No such model.', code: 'model_not_found' } }));
    };
    const control = await serve({ 'POST /api/v1/jobs': refused });
    const { stderr } = await run(['jobs', 'submit', '-m', 'none', '--message', 'x'], control.environment);
    expect(stderr).toBe(
      'error: No such model. (model_not_found)\nSee what there is: flotilla models (with a key for inference, or as admin)\n',
    );
  });

  test('of two kinds that a command is about, the one that is missing is listed', async () => {
    const refused = (response: ServerResponse) => {
      response.writeHead(404, { 'content-type': 'application/json' });
      response.end(JSON.stringify({ error: { message: 'There is no node "node_1".', code: 'not_found' } }));
    };
    const control = await serve({ 'GET /api/v1/nodes/node_1': refused });
    const { stderr } = await run(['models', 'discover', 'node_1'], control.environment);
    expect(stderr).toBe(
      'error: There is no node "node_1". (not_found)\nSee which there are: flotilla nodes\n',
    );
  });

  test('an https address of what speaks plain http', async () => {
    const { url } = await serve({});
    const { code, stderr } = await run([
      'models',
      '--api-key',
      'flk_x',
      '--url',
      url.replace('http', 'https'),
    ]);
    expect(code).toBe(1);
    expect(stderr).toMatch(
      /cannot be reached: .*\nWhat listens there speaks no TLS: its address begins with http:/,
    );
  });

  test('no key is known', async () => {
    const { code, stderr } = await run(['nodes'], { FLOTILLA_DATA_DIR: '/nonexistent' });
    expect(code).toBe(1);
    expect(stderr).toContain('there is no /nonexistent/admin-key');
    const remote = await run(['nodes', '--url', 'https://fleet.example']);
    expect(remote.stderr).toContain('No API key for https://fleet.example');
  });
});

describe('the key', () => {
  const keyOf = () => server?.asked.at(-1)?.authorization;

  test('is that of the flag, else of the environment, else on loopback of the data directory', async () => {
    const { url } = await serve({ 'GET /v1/models': { object: 'list', data: [] } });
    const dir = await mkdtemp(join(tmpdir(), 'flotilla-cli-'));
    await writeFile(join(dir, 'admin-key'), 'flk_file\n');
    const base = { FLOTILLA_URL: url, FLOTILLA_DATA_DIR: dir };
    await run(['models'], base);
    expect(keyOf()).toBe('Bearer flk_file');
    await run(['models'], { ...base, FLOTILLA_API_KEY: 'flk_environment' });
    expect(keyOf()).toBe('Bearer flk_environment');
    await run(['models', '--api-key', 'flk_flag'], { ...base, FLOTILLA_API_KEY: 'flk_environment' });
    expect(keyOf()).toBe('Bearer flk_flag');
    await rm(dir, { recursive: true });
  });
});

describe('output', () => {
  const models = Array.from({ length: 5000 }, (_, at) => ({
    id: `org/model-${at}`,
    object: 'model',
    created: 0,
    owned_by: 'flotilla',
  }));

  test('is a plain table, and JSON with --json', async () => {
    const control = await serve({ 'GET /v1/models': { object: 'list', data: models.slice(0, 2) } });
    const plain = await run(['models'], control.environment);
    expect(plain).toMatchObject({ code: 0, stderr: '' });
    expect(plain.stdout).toBe('MODEL        OWNED BY\norg/model-0  flotilla\norg/model-1  flotilla\n');
    const json = await run(['models', '--json'], control.environment);
    expect(JSON.parse(json.stdout)).toEqual(models.slice(0, 2));
  });

  test('whose reader leaves early ends in silence', async () => {
    const control = await serve({ 'GET /v1/models': { object: 'list', data: models } });
    const { child, ended } = start(['models'], control.environment);
    child.stdout?.once('data', () => child.stdout?.destroy());
    expect(await ended).toMatchObject({ code: 0, stderr: '' });
  });

  test('of a new key is the key alone; what is said about it goes to stderr', async () => {
    const control = await serve({ 'POST /api/v1/keys': { id: 'key_1', name: 'ci', key: 'flk_secret' } });
    const args = ['keys', 'create', 'ci', '--model', 'a', '--model', 'b*', '--concurrency', '2'];
    const { code, stdout, stderr } = await run(args, control.environment);
    expect({ code, stdout }).toEqual({ code: 0, stdout: 'flk_secret\n' });
    expect(stderr).toContain('shown this once');
    expect(control.asked[0]?.body).toEqual({ name: 'ci', allowed_models: ['a', 'b*'], concurrency: 2 });
  });

  test('limits on tokens are given in words, and none lifts them', async () => {
    const key = { id: 'key_1', name: 'ci', scopes: [], allowed_models: [], node_labels: {} };
    const control = await serve({
      'POST /api/v1/keys': { ...key, key: 'flk_secret' },
      'PATCH /api/v1/keys/key_1': { ...key, tokens_per_minute: null, token_budget: null },
    });
    const limits = ['--tokens-per-minute', '20k', '--token-budget', '2M/week'];
    expect(await run(['keys', 'create', 'ci', ...limits], control.environment)).toMatchObject({ code: 0 });
    const lifted = ['--tokens-per-minute', 'none', '--token-budget', 'none'];
    await run(['keys', 'create', 'ci', ...lifted], control.environment);
    expect(await run(['keys', 'update', 'key_1', ...lifted], control.environment)).toMatchObject({ code: 0 });
    expect(control.asked.map(({ body }) => body)).toEqual([
      { name: 'ci', tokens_per_minute: 20_000, token_budget: { tokens: 2_000_000, period: 'week' } },
      { name: 'ci' },
      { tokens_per_minute: null, token_budget: null },
    ]);
  });

  test("of a key's limits is what is left of each", async () => {
    const left = {
      key: 'key_1',
      requests: null,
      tokens: { limit: 20_000, remaining: 19_000, reset_ms: 3000 },
      concurrency: { limit: 4, in_use: 1 },
      budget: {
        tokens: 1_000_000,
        period: 'month',
        used: 400,
        reserved: 100,
        remaining: 999_500,
        period_started_at: '2026-01-01T00:00:00.000Z',
        renews_at: '2026-02-01T00:00:00.000Z',
      },
    };
    const control = await serve({ 'GET /api/v1/usage/limits': left });
    const { stdout } = await run(['keys', 'limits'], control.environment);
    expect(stdout).toMatch(/requests +no limit\n/);
    expect(stdout).toMatch(/tokens +19,000 of 20,000 a minute left, all of them in 3/);
    expect(stdout).toMatch(/at once +1 of 4 under way\n/);
    expect(stdout).toMatch(/budget +1,000,000 tokens a month\n[^]*left +999,500\n[^]*renews +2026-02-01/);
  });

  test.each([
    ['https://fleet.example', 'flotilla join https://fleet.example --token fle_1\n'],
    ['http://fleet.lan', 'flotilla join http://fleet.lan --token fle_1 --insecure\n'],
    [null, 'in place of 127.0.0.1'],
  ])(
    'of a new token has the address that machines reach the control plane by: %s',
    async (public_url, said) => {
      const made = {
        id: 'enr_1',
        token: 'fle_1',
        max_uses: 1,
        expires_at: '2026-01-01T00:00:00Z',
        public_url,
      };
      const control = await serve({ 'POST /api/v1/enrolment-tokens': made });
      const { stdout, stderr } = await run(['tokens', 'create'], control.environment);
      expect(stdout).toBe('fle_1\n');
      expect(stderr).toContain(said);
      if (public_url !== null) expect(stderr).not.toContain('127.0.0.1');
    },
  );

  test.runIf(lanAddress() !== undefined)(
    'of a new token has an address by which other machines come, where the control plane listens there',
    async () => {
      const made = { token: 'fle_1', max_uses: 1, expires_at: '2026-01-01T00:00:00Z', public_url: null };
      const routes = { 'POST /api/v1/enrolment-tokens': made, 'GET /healthz': {} };
      const everywhere = await serve(routes, '0.0.0.0');
      const { port } = new URL(everywhere.url);
      const line = `flotilla join http://${lanAddress()}:${port} --token fle_1 --insecure\n`;
      const told = await run(['tokens', 'create'], everywhere.environment);
      expect(told.stderr).toContain(line);
      expect(told.stderr).not.toContain('127.0.0.1');
      everywhere.close();
      const here = await serve(routes);
      const alone = await run(['tokens', 'create'], here.environment);
      expect(alone.stderr).toContain(`flotilla join ${here.url} --token fle_1\n`);
    },
  );

  test('of nodes says why one is not well', async () => {
    const control = await serve({ 'GET /api/v1/nodes': { data: [NODE], next_after: null } });
    const { stdout } = await run(['nodes'], control.environment);
    expect(stdout).toMatch(/attic +suspect +degraded +1\/4 +llama3 .*2\.5 H silent/);
    const shown = await run(['nodes', 'show', 'attic'], control.environment);
    expect(shown.stdout).toContain('ollama is slow');
  });

  test('of a node that is changed is the node; what was not given is not sent', async () => {
    const control = await serve({
      'GET /api/v1/nodes': { data: [NODE], next_after: null },
      'PATCH /api/v1/nodes/node_1': { ...NODE, labels: { room: 'attic' } },
    });
    const update = (...flags: string[]) => run(['nodes', 'update', 'attic', ...flags], control.environment);
    expect((await update('--label', 'room=attic')).stdout).toMatch(/^labels +room=attic$/m);
    await update('--no-labels', '--model', 'llama3*', '--model', 'qwen3');
    await update('--model', '*');
    expect(control.asked.flatMap(({ body }) => body ?? [])).toEqual([
      { labels: { room: 'attic' } },
      { labels: {}, allowed_models: ['llama3*', 'qwen3'] },
      { allowed_models: [] },
    ]);
  });

  test('of an explanation has every node while the job is open, and says where to look once it has ended', async () => {
    const path = 'GET /api/v1/jobs/job_1/explain';
    const nodes = [{ node: 'node_1', name: 'attic', verdict: 'full', reasons: ['all its slots are taken'] }];
    const open = await serve({ [path]: { id: 'job_1', state: 'queued', summary: 'It waits.', nodes } });
    const waiting = await run(['jobs', 'explain', 'job_1'], open.environment);
    expect(waiting.stdout).toMatch(/^It waits\.\n\n[^]*attic +full +all its slots are taken/);
    open.close();
    const over = await serve({
      [path]: { id: 'job_1', state: 'failed', summary: 'It has ended.', nodes: [] },
    });
    const ended = await run(['jobs', 'explain', 'job_1'], over.environment);
    expect(ended.stdout).toBe('It has ended.\n');
    expect(ended.stderr).toContain('flotilla jobs show job_1');
  });

  test('of a watched job that waits says once where the reason stands', async () => {
    const job = { id: 'job_1', created_at: '2026-01-01T00:00:00Z', attempts: [], error: null, position: 1 };
    const steps = [
      { ...job, state: 'queued', finished_at: null },
      { ...job, state: 'queued', position: 0, finished_at: null },
      { ...job, state: 'succeeded', position: null, finished_at: '2026-01-01T02:00:00Z' },
    ];
    const control = await serve({
      'GET /api/v1/jobs/job_1/events': (response: ServerResponse) => {
        response.writeHead(200, { 'content-type': 'text/event-stream' });
        response.end(steps.map((step) => `event: state\ndata: ${JSON.stringify(step)}\n\n`).join(''));
      },
    });
    expect(await run(['jobs', 'watch', 'job_1'], control.environment)).toMatchObject({
      code: 0,
      stdout: 'queued, 1 before it\nqueued, 0 before it\nsucceeded after 2h\n',
      stderr: 'Why it waits: flotilla jobs explain job_1\n',
    });
  });

  test('of usage is asked for with its filters and grouping', async () => {
    const group = {
      group: 'llama3',
      requests: 1200,
      failed: 1,
      prompt_tokens: 5,
      completion_tokens: 9,
      estimated: 0,
    };
    const data = [group, { ...group, group: '' }];
    const control = await serve({ 'GET /api/v1/usage/summary': { data } });
    const { stdout } = await run(['usage', '--by', 'model', '--since', '2026-01-01'], control.environment);
    expect(stdout).toMatch(/MODEL +REQUESTS[^]*llama3 +1,200[^]*\n– +1,200/);
    expect(control.asked[0]?.at).toContain('since=2026-01-01T00%3A00%3A00.000Z&by=model');
  });
});

describe('chat', () => {
  const chunk = (content: string) =>
    `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content } }] })}\n\n`;
  const list = { object: 'list', data: [{ id: 'nomic-embed' }, { id: 'llama3' }] };

  test('streams the answer of the first model that chats; the prompt may come from a pipe', async () => {
    const control = await serve({
      'GET /v1/models': list,
      'POST /v1/chat/completions': (response: ServerResponse) =>
        response.end(`${chunk('Hel')}${chunk('lo')}data: [DONE]\n\n`),
    });
    const outcome = await run(['chat', '--system', 'be kind'], control.environment, 'hi there\n');
    expect(outcome).toMatchObject({ code: 0, stdout: 'Hello\n', stderr: '' });
    expect(control.asked[1]?.body).toMatchObject({
      model: 'llama3',
      stream: true,
      messages: [
        { role: 'system', content: 'be kind' },
        { role: 'user', content: 'hi there' },
      ],
    });
  });

  test('whose answer was cut fails, after what has come', async () => {
    const control = await serve({
      'POST /v1/chat/completions': (response: ServerResponse) => response.end(chunk('Hel')),
    });
    const outcome = await run(['chat', '-m', 'llama3', 'hi'], control.environment);
    expect(outcome).toMatchObject({ code: 1, stdout: 'Hel\n' });
    expect(outcome.stderr).toContain('the answer is not whole');
  });

  test('stops at Ctrl-C without a word, and the server sees it', async () => {
    const left = Promise.withResolvers<void>();
    const control = await serve({
      'POST /v1/chat/completions': (response: ServerResponse) => {
        response.on('close', () => left.resolve());
        response.write(chunk('Hel'));
      },
    });
    const { child, output, ended } = start(['chat', '-m', 'llama3', 'hi'], control.environment);
    await vi.waitFor(() => expect(output.stdout).toBe('Hel'), 10_000);
    child.kill('SIGINT');
    await left.promise;
    expect(await ended).toMatchObject({ code: 130, stdout: 'Hel\n', stderr: '' });
  });
});

describe('sim backend', () => {
  test('says where it listens, serves, and ends cleanly at Ctrl-C', async () => {
    const { child, output, ended } = start(['sim', 'backend', '--port', '0', '--model', 'm', '--json']);
    await vi.waitFor(() => expect(output.stdout).toContain('\n'), 10_000);
    const { url, models } = JSON.parse(output.stdout) as { url: string; models: string[] };
    expect(models).toEqual(['m']);
    expect((await fetch(`${url}/models`)).status).toBe(200);
    child.kill('SIGINT');
    expect(await ended).toMatchObject({ code: 0, stderr: '' });
  });

  test('whose port is taken says how to give another', async () => {
    const control = await serve({});
    const { port } = new URL(control.url);
    const { code, stderr } = await run(['sim', 'backend', '--port', port]);
    expect(code).toBe(1);
    expect(stderr).toMatch(new RegExp(`Port ${port} on 127.0.0.1 is taken[^]*--port`));
  });

  test('outlives a reader of its output that leaves', async () => {
    const { child, output, ended } = start(['sim', 'backend', '--port', '0', '--json']);
    await vi.waitFor(() => expect(output.stdout).toContain('\n'), 10_000);
    child.stdout?.destroy();
    child.kill('SIGTERM');
    await once(child, 'exit');
    expect((await ended).code).toBe(0);
  });
});

const NODE = {
  id: 'node_1',
  name: 'attic',
  state: 'suspect',
  health: 'degraded',
  cordoned: false,
  drain: null,
  labels: { gpu: 'a100' },
  region: null,
  version: '0.1.0',
  platform: null,
  allowed_models: [],
  pools: [{ id: 'ollama', capacity: 4, capacity_from: 'default', reserved: 1, reported: 1 }],
  backends: [
    {
      id: 'ollama',
      kind: 'ollama',
      version: null,
      pool: 'ollama',
      health: 'degraded',
      reason: 'ollama is slow',
      models: [
        { id: 'llama3', operations: ['chat'], loaded: true, health: 'degraded', reason: null, allowed: true },
      ],
    },
  ],
  epoch: 1,
  created_at: '2026-01-01T00:00:00Z',
  connected_at: null,
  last_seen_at: '2026-01-01T00:00:00Z',
  why: {
    summary: '2.5 H silent',
    last_beat_ms_ago: 13_000,
    missed_beats: 2,
    close_reason: null,
    failing_probes: [],
    warnings: [],
    alarms: [],
  },
  host: {},
};
