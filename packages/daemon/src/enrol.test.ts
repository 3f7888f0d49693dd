import { readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { controlAddress } from './control-address.ts';
import { ConfigError, loadConfig } from './config.ts';
import { EnrolError, enrol } from './enrol.ts';
import { forgetEnrolment } from './without-daemon.ts';
import { lockStateDir, openStateDir, readCredential, StateDirError, statePaths } from './state-dir.ts';
import { FakeServer, type FakeAnswer } from './testing/fake-servers.ts';
import { folder } from './testing/folder.ts';

const PATH = '/node/v1/enrol';
const enrolled: FakeAnswer = { status: 201, json: { id: 'node_1', name: 'box', credential: 'fln_secret' } };
const refusal = (status: number, code: string, message: string, reason?: string): FakeAnswer => ({
  status,
  json: { error: { message, type: 'x', code, param: null, reason } },
});

async function control(answer: FakeAnswer): Promise<FakeServer> {
  const server = new FakeServer();
  server.routes = { [PATH]: answer };
  await server.start();
  onTestFinished(() => server.stop());
  return server;
}

async function failure(answer: FakeAnswer): Promise<EnrolError> {
  const server = await control(answer);
  const state_dir = await folder();
  const error: unknown = await enrol({ state_dir, url: server.url, token: 'fle_1', name: 'box' }).catch(
    (error: unknown) => error,
  );
  expect(error).toBeInstanceOf(EnrolError);
  expect(await readCredential(statePaths(state_dir))).toBeNull();
  return error as EnrolError;
}

test('a token becomes the node’s own credential, on disk for its owner alone', async () => {
  const server = await control(enrolled);
  const state_dir = join(await folder(), 'deep', 'node');
  const result = await enrol({
    state_dir,
    url: `${server.url}/`,
    token: 'fle_1',
    name: 'box',
    labels: { gpu: '4090' },
  });
  expect(result).toEqual({ fresh: true, node_id: 'node_1', name: 'box', url: server.url });
  expect(server.asked[0]?.body).toEqual({ token: 'fle_1', name: 'box', labels: { gpu: '4090' } });
  const { credential: path } = statePaths(state_dir);
  expect(await readCredential(statePaths(state_dir))).toMatchObject({
    credential: 'fln_secret',
    url: server.url,
    insecure: false,
  });
  expect((await stat(path)).mode & 0o777).toBe(0o600);
  expect(await readFile(path, 'utf8')).not.toContain('fle_1');
  expect((await readdir(state_dir)).sort()).toEqual(['credential', 'lock']);
});

test('enrolling again at the same place uses no token and changes nothing', async () => {
  const server = await control(enrolled);
  const state_dir = await folder();
  await enrol({ state_dir, url: server.url, token: 'fle_1' });
  const again = await enrol({ state_dir, url: `${server.url}/`, token: 'fle_2' });
  expect(again).toEqual({ fresh: false, node_id: 'node_1', name: 'box', url: server.url });
  expect(server.asked).toHaveLength(1);
});

test('two at once enrol one node', async () => {
  const server = await control(enrolled);
  const state_dir = await folder();
  const results = await Promise.allSettled(
    [1, 2].map(() => enrol({ state_dir, url: server.url, token: 'fle_1' })),
  );
  expect(results.some(({ status }) => status === 'fulfilled')).toBe(true);
  expect(server.asked).toHaveLength(1);
});

describe('settings', () => {
  const settings = { slots: 6, backends: [{ url: 'http://127.0.0.1:9000' }] };
  const fromFile = (state_dir: string) => loadConfig(statePaths(state_dir).config);

  test('are kept for the daemon, where nobody else can read them', async () => {
    const server = await control(enrolled);
    const state_dir = await folder();
    await enrol({ state_dir, url: server.url, token: 'fle_1', settings });
    expect(await fromFile(state_dir)).toMatchObject(settings);
    expect((await stat(statePaths(state_dir).config)).mode & 0o777).toBe(0o600);
  });

  test('that are wrong, or would stand in a file that is, use no token', async () => {
    const server = await control(enrolled);
    const state_dir = await folder();
    const attempt = { state_dir, url: server.url, token: 'fle_1' };
    await expect(enrol({ ...attempt, settings: { slots: -1 } })).rejects.toThrow(ConfigError);
    await writeFile(statePaths(state_dir).config, 'regoin: home\n');
    await expect(enrol({ ...attempt, settings })).rejects.toThrow(ConfigError);
    expect(server.asked).toHaveLength(0);
    expect(await readCredential(statePaths(state_dir))).toBeNull();
  });

  test('are not written beside a daemon that runs; those it has already need no writing', async () => {
    const server = await control(enrolled);
    const state_dir = await folder();
    const attempt = { state_dir, url: server.url, token: 'fle_1' };
    await enrol({ ...attempt, settings });
    const daemon = await lockStateDir(statePaths(state_dir));
    onTestFinished(() => daemon.release());
    expect(await enrol({ ...attempt, settings })).toMatchObject({ fresh: false });
    await expect(enrol({ ...attempt, settings: { slots: 7 } })).rejects.toThrow(StateDirError);
    expect(await fromFile(state_dir)).toMatchObject(settings);
  });

  test('of two at once are those of one of them', async () => {
    const server = await control(enrolled);
    const state_dir = await folder();
    const attempt = { state_dir, url: server.url, token: 'fle_1' };
    await enrol(attempt);
    const joins = [5, 6].map((slots) => enrol({ ...attempt, settings: { slots } }));
    const results = await Promise.allSettled(joins);
    expect(results.some(({ status }) => status === 'fulfilled')).toBe(true);
    expect([5, 6]).toContain((await fromFile(state_dir)).slots);
    expect(await readdir(state_dir)).not.toContain('node.yaml.tmp');
  });
});

test('enrolling elsewhere asks to leave first', async () => {
  const server = await control(enrolled);
  const state_dir = await folder();
  await enrol({ state_dir, url: server.url, token: 'fle_1' });
  await expect(enrol({ state_dir, url: 'https://other.example', token: 'fle_2' })).rejects.toThrow(
    /already enrolled.*flotilla node leave/,
  );
  expect(await forgetEnrolment(state_dir)).toEqual({ name: 'box', url: server.url });
  expect(await forgetEnrolment(state_dir)).toBeNull();
});

test('the name is the host’s where none is given, in letters that are allowed', async () => {
  const server = await control(enrolled);
  await enrol({ state_dir: await folder(), url: server.url, token: 'fle_1' });
  const { name } = server.asked[0]!.body as { name: string };
  expect(name).toMatch(/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/);
  expect(name[0]).toBe(hostname()[0]);
});

describe('plain http', () => {
  test('to another machine is refused, with the reason and two ways on', async () => {
    const attempt = enrol({ state_dir: await folder(), url: 'http://192.0.2.1:7400', token: 'fle_1' });
    await expect(attempt).rejects.toThrow(/plain http.*read and change.*https.*--insecure/s);
  });

  test('is fine to this machine, and elsewhere where the operator says so', () => {
    for (const url of [
      'http://localhost:7400',
      'http://127.0.0.1:7400',
      'http://127.1.2.3',
      'http://[::1]:7400',
    ]) {
      expect(controlAddress(url, false).protocol).toBe('http:');
    }
    for (const url of [
      'http://127.0.0.1.evil.example',
      'http://localhost.evil.example',
      'http://0x7f.1.evil',
    ]) {
      expect(() => controlAddress(url, false)).toThrow(/plain http/);
    }
    expect(controlAddress('http://10.0.0.1:7400', true).host).toBe('10.0.0.1:7400');
    expect(() => controlAddress('10.0.0.1:7400', false)).toThrow(/https:\/\//);
    expect(() => controlAddress('https://u:p@x', false)).toThrow(/user or password/);
  });
});

describe('what went wrong is said with what to do next, and no credential is left behind', () => {
  test.each<[string, FakeAnswer, string, RegExp]>([
    [
      'an unknown token',
      refusal(401, 'unauthorized', 'Unknown token.', 'token_unknown'),
      'token_unknown',
      /fle_.*tokens create/,
    ],
    [
      'an expired token',
      refusal(401, 'unauthorized', 'No.', 'token_expired'),
      'token_expired',
      /expired.*tokens create/,
    ],
    [
      'an expired token, told in words',
      refusal(401, 'unauthorized', 'The token has expired.'),
      'token_expired',
      /tokens create/,
    ],
    [
      'a used token',
      refusal(401, 'unauthorized', 'No.', 'token_used'),
      'token_used',
      /used up.*tokens create/,
    ],
    [
      'a used token, told in words',
      refusal(403, 'forbidden', 'The token is used up.'),
      'token_used',
      /tokens create/,
    ],
    ['a taken name', refusal(409, 'name_taken', 'Taken.'), 'name_taken', /box.*--name/],
    [
      'another refusal',
      refusal(503, 'unavailable', 'The store is down.'),
      'refused',
      /unavailable.*store is down/,
    ],
    [
      'a web server',
      { status: 200, text: '<html>' },
      'not_flotilla',
      /not as a Flotilla control plane.*7400/,
    ],
    ['another API', { status: 404, json: { detail: 'Not Found' } }, 'not_flotilla', /status 404/],
    [
      'a redirect',
      { status: 301, headers: { location: 'https://elsewhere.example/' } },
      'not_flotilla',
      /elsewhere.*not sent on/,
    ],
    [
      'an answer without end',
      { status: 200, text: 'x'.repeat(1_000_000) },
      'not_flotilla',
      /not as a Flotilla/,
    ],
  ])('%s', async (_name, answer, code, message) => {
    const error = await failure(answer);
    expect(error.code).toBe(code);
    expect(error.message).toMatch(message);
  });

  test('nobody there', async () => {
    const server = await control(enrolled);
    await server.stop();
    const attempt = enrol({ state_dir: await folder(), url: server.url, token: 'fle_1' });
    await expect(attempt).rejects.toMatchObject({
      code: 'unreachable',
      message: expect.stringContaining('Nothing listens') as string,
    });
  });

  test('a server that says nothing', async () => {
    const server = await control({ hang: true });
    const attempt = enrol({ state_dir: await folder(), url: server.url, token: 'fle_1', timeout_ms: 50 });
    await expect(attempt).rejects.toMatchObject({
      code: 'unreachable',
      message: expect.stringContaining('in time') as string,
    });
  });

  test('http where TLS was meant', async () => {
    const server = await control(enrolled);
    const attempt = enrol({
      state_dir: await folder(),
      url: server.url.replace('http:', 'https:'),
      token: 'fle_1',
    });
    await expect(attempt).rejects.toThrow(/does not speak TLS/);
  });

  test('a directory that cannot be written: the token is not spent', async () => {
    const server = await control(enrolled);
    const paths = await openStateDir(await folder());
    await writeFile(join(paths.dir, 'file'), '');
    await expect(
      enrol({ state_dir: join(paths.dir, 'file', 'x'), url: server.url, token: 'fle_1' }),
    ).rejects.toThrow(/cannot be made/);
    expect(server.asked).toEqual([]);
  });

  test('a running daemon on the directory: the token is not spent', async () => {
    const server = await control(enrolled);
    const paths = await openStateDir(await folder());
    const lock = await lockStateDir(paths);
    await expect(enrol({ state_dir: paths.dir, url: server.url, token: 'fle_1' })).rejects.toThrow(
      /Another Flotilla daemon/,
    );
    lock.release();
    expect(server.asked).toEqual([]);
  });
});
