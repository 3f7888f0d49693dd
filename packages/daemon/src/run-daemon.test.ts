import { readFileSync } from 'node:fs';
import { access, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { BroadcastChannel } from 'node:worker_threads';
import { request } from 'undici';
import { describe, expect, onTestFinished, test } from 'vitest';
import { callDaemon } from './control-socket.ts';
import { type RunOptions, runDaemon } from './run-daemon.ts';
import { readCredential } from './state-dir.ts';
import { enrolledDir } from './testing/enrolled-dir.ts';
import { FakeServer, vllmRoutes } from './testing/fake-servers.ts';
import { folder } from './testing/folder.ts';
import { ManualClock } from '@flotilla/core/testing';
import { recordedLog } from './testing/recorded-log.ts';
import type { FromStandIn, FromTest } from './testing/stand-in-link.ts';
import type { FromLink, LinkThreadData, ToLink } from './threads.ts';
import { until } from './testing/until.ts';

const STAND_IN = new URL('./testing/stand-in-link.ts', import.meta.url);
const connected = {
  type: 'connected',
  url: 'http://127.0.0.1:1',
  epoch: 3,
  node_id: 'node_1',
  name: 'box',
  heartbeat_ms: 5_000,
} satisfies FromLink;
let addresses = 0;

async function backend(): Promise<FakeServer> {
  const server = new FakeServer();
  server.routes = vllmRoutes('m');
  await server.start();
  onTestFinished(() => server.stop());
  return server;
}

/** A whole daemon in this process, with a stand-in for its link thread that the test speaks for. */
async function run(options: RunOptions & { answer_drain?: boolean } = {}) {
  const control_url = `http://127.0.0.1:${++addresses}`;
  const paths = await enrolledDir(control_url);
  const channel = new BroadcastChannel(control_url);
  const started: Omit<LinkThreadData, 'progress'>[] = [];
  const heard: ToLink[] = [];
  const on_disk_at_drain: string[] = [];
  const say = (message: FromLink) => channel.postMessage({ say: message } satisfies FromTest);
  channel.onmessage = ({ data }: { data: FromStandIn }) => {
    if ('started' in data) started.push(data.started);
    else heard.push(data.heard);
    if ('heard' in data && data.heard.type === 'drain') {
      const beat = JSON.parse(readFileSync(paths.heartbeat, 'utf8')) as { status: string };
      on_disk_at_drain.push(beat.status);
    }
    if ('heard' in data && data.heard.type === 'drain' && options.answer_drain !== false) {
      say({ type: 'stopped', why: 'drained', message: '', released: 0, kept: 0 });
    }
  };
  const stop = new AbortController();
  const kill = new AbortController();
  const log = recordedLog();
  const ended = runDaemon({
    state_dir: paths.dir,
    flags: { status_port: 0, find_backends: false, ...options.flags },
    environment: {},
    log,
    handle_signals: false,
    signal: stop.signal,
    kill: kill.signal,
    link_script: STAND_IN,
    find_ports: [],
    ...options,
  });
  onTestFinished(async () => {
    kill.abort();
    await ended;
    channel.close();
  });
  const json = async (path: string) => JSON.parse(await readFile(path, 'utf8')) as Record<string, unknown>;
  const get = async (path: string) => {
    const { url } = (await json(paths.status)) as { url: string };
    const { statusCode, body } = await request(`${url}${path}`);
    return { status: statusCode, text: await body.text() };
  };
  return { paths, log, started, heard, on_disk_at_drain, say, channel, stop, kill, ended, json, get };
}

async function running(options: RunOptions & { answer_drain?: boolean } = {}) {
  const daemon = await run(options);
  await until(() => expect(daemon.started).toHaveLength(1));
  return daemon;
}

describe('the start', () => {
  test('the link opens with proved backends, after `running` is on disk, beside an empty registry', async () => {
    const server = await backend();
    const { paths, started, json, heard } = await running({
      flags: {
        backends: [{ url: server.url, id: 'gpu', api_key: 'sk-1' }],
        status_port: 0,
        find_backends: false,
        region: 'home',
      },
    });
    expect(started[0]).toMatchObject({
      credential: 'fln_secret',
      boot_id: expect.stringMatching(/^boot_/) as string,
      descriptor: {
        name: 'box',
        region: 'home',
        backends: [{ id: 'gpu', models: [{ id: 'm' }] }],
        pools: [{ id: 'gpu', capacity: 4 }],
      },
      descriptor_hash: expect.stringMatching(/^[0-9a-f]{32}$/) as string,
      backends: [
        { id: 'gpu', base_url: `${server.url}/v1`, pool: 'gpu', headers: { authorization: 'Bearer sk-1' } },
      ],
      health: [{ id: 'gpu', health: 'healthy', models: [] }],
    });
    expect(await json(paths.heartbeat)).toMatchObject({
      status: 'running',
      pid: process.pid,
      boot_id: started[0]?.boot_id,
    });
    expect(await json(paths.registry)).toMatchObject({
      pid: process.pid,
      boot_id: started[0]?.boot_id,
      agents: [],
    });
    expect((await stat(paths.control)).mode & 0o777).toBe(0o600);
    expect(heard).toEqual([]);
  });

  test('a backend that hangs delays it no longer than its time for first probes', async () => {
    const server = await backend();
    server.fallback = { hang: true };
    server.routes = {};
    const clock = new ManualClock();
    const flags = { backends: [{ url: server.url }], status_port: 0, find_backends: false };
    const { started } = await run({ flags, clock });
    await until(() => expect(server.asked).not.toEqual([]));
    clock.advance(2_900);
    expect(started).toEqual([]);
    clock.advance(100);
    await until(() => expect(started[0]?.health).toMatchObject([{ health: 'down' }]));
  });

  test('a second daemon on the directory is refused, and the first goes on', async () => {
    const first = await running();
    const log = recordedLog();
    expect(await runDaemon({ state_dir: first.paths.dir, environment: {}, log, link_script: STAND_IN })).toBe(
      1,
    );
    expect(log.lines).toMatchObject([
      { level: 'error', message: expect.stringContaining('Another Flotilla daemon') as string },
    ]);
    expect(await callDaemon(first.paths.dir, { verb: 'status' })).toMatchObject({ status: 'running' });
  });

  test('without enrolment it says how to enrol; with wrong settings it is wrong usage', async () => {
    const dir = await folder();
    const log = recordedLog();
    expect(await runDaemon({ state_dir: dir, environment: {}, log })).toBe(1);
    expect(log.lines.at(-1)?.message).toMatch(/not enrolled.*flotilla join/);
    await writeFile(join(dir, 'node.yaml'), 'slot: 4\n');
    expect(await runDaemon({ state_dir: dir, environment: {}, log })).toBe(2);
    expect(log.lines.at(-1)?.message).toMatch(/did you mean slots\?/);
  });

  test('the credential is not sent in the clear to where a setting points', async () => {
    const paths = await enrolledDir('https://fleet.example');
    const log = recordedLog();
    const flags = { control_url: 'http://192.0.2.1:7400' };
    expect(await runDaemon({ state_dir: paths.dir, environment: {}, flags, log })).toBe(1);
    expect(log.lines.at(-1)?.message).toMatch(/plain http/);
  });
});

describe('while it runs', () => {
  test('what the link tells is in the heartbeat file, the status and the metrics', async () => {
    const server = await backend();
    const { paths, say, json, get } = await running({
      flags: {
        backends: [{ url: server.url, id: 'gpu', api_key: 'sk-own' }],
        status_port: 0,
        find_backends: false,
      },
    });
    expect((await get('/readyz')).status).toBe(503);
    say(connected);
    await until(async () => expect(await json(paths.heartbeat)).toMatchObject({ link: 'connected' }));
    say({
      type: 'acked',
      at: Date.now(),
      rtt_ms: 12,
      cordoned: false,
      drain_ms: null,
      warnings: ['descriptor: odd'],
    });
    const attempt = { job: 'job_1', attempt: 1, backend: 'gpu', model: 'm', state: 'running', age_ms: 5 };
    const ended = { outcome: 'completed', operation: 'chat' as const, first_byte_ms: 20, total_ms: 200 };
    say({
      type: 'load',
      pools: [{ id: 'gpu', in_flight: 1, capacity: 4 }],
      attempts: [attempt],
      ended: [ended],
    });
    await until(async () => {
      const status = JSON.parse((await get('/status')).text) as Record<string, unknown>;
      expect(status).toMatchObject({
        name: 'box',
        ready: true,
        link: { state: 'connected', url: connected.url, epoch: 3, rtt_ms: 12, warnings: ['descriptor: odd'] },
        pools: [{ id: 'gpu', in_flight: 1, capacity: 4, capacity_from: 'default' }],
        backends: [{ id: 'gpu', kind: 'vllm', health: 'healthy', models: [{ id: 'm', health: 'healthy' }] }],
        attempts: [attempt],
      });
    });
    expect((await get('/readyz')).status).toBe(200);
    for (const path of ['/status', '/metrics'])
      expect((await get(path)).text).not.toMatch(/fln_secret|sk-own/);
    const metrics = (await get('/metrics')).text;
    for (const line of [
      'flotilla_node_link_up 1',
      'flotilla_node_beats_acknowledged_total 1',
      'flotilla_node_in_flight{pool="gpu"} 1',
      'flotilla_node_backend_health{backend="gpu",kind="vllm"} 1',
      'flotilla_node_attempts_total{operation="chat",outcome="completed"} 1',
      'flotilla_node_first_byte_seconds_count{operation="chat"} 1',
    ]) {
      expect(metrics).toContain(line);
    }
    say({ type: 'disconnected', reason: 'no acknowledgement for 10 s', retry_in_ms: 500 });
    await until(async () => expect(await json(paths.heartbeat)).toMatchObject({ link: 'disconnected' }));
    expect(JSON.parse((await get('/readyz')).text)).toMatchObject({
      reasons: ['The link is disconnected: no acknowledgement for 10 s.'],
    });
  });

  test('slots are shown as they are offered, also where more are configured', async () => {
    const server = await backend();
    const { get } = await running({
      flags: {
        backends: [{ url: server.url, id: 'gpu', slots: 2000 }],
        status_port: 0,
        find_backends: false,
      },
    });
    expect(JSON.parse((await get('/status')).text)).toMatchObject({ pools: [{ id: 'gpu', capacity: 512 }] });
    expect((await get('/metrics')).text).toContain('flotilla_node_capacity{pool="gpu"} 512');
  });

  test('a backend that dies is told to the link at once when a request has failed, and again when it is back', async () => {
    const server = await backend();
    const { say, heard } = await running({
      flags: { backends: [{ url: server.url, id: 'gpu' }], status_port: 0, find_backends: false },
    });
    await server.stop();
    say({ type: 'backend_failed', backend: 'gpu', model: 'm', reason: 'refused' });
    await until(() =>
      expect(heard.at(-1)).toMatchObject({ type: 'health', health: [{ id: 'gpu', health: 'down' }] }),
    );
    await server.start();
    await until(() =>
      expect(heard.at(-1)).toMatchObject({
        type: 'health',
        health: [{ id: 'gpu', health: 'healthy', models: [] }],
      }),
    );
  });

  test('`reload` reads node.yaml again: new backends are used and described; what it cannot apply it names', async () => {
    const server = await backend();
    const { paths, heard } = await running({ flags: { status_port: 0, find_backends: false } });
    await writeFile(paths.config, `backends: [{url: "${server.url}", id: gpu}]\nheartbeat_stale_ms: 4000\n`);
    expect(await callDaemon(paths.dir, { verb: 'reload' })).toMatchObject({
      ok: true,
      needs_restart: ['heartbeat_stale_ms'],
      backends: [{ id: 'gpu' }],
    });
    await until(() =>
      expect(heard.at(-1)).toMatchObject({ health: [{ id: 'gpu', health: 'healthy', models: [] }] }),
    );
    expect(heard.find(({ type }) => type === 'descriptor')).toMatchObject({
      descriptor: { pools: [{ id: 'gpu' }] },
      backends: [{ id: 'gpu' }],
    });
    await writeFile(paths.config, 'backend: []\n');
    await expect(callDaemon(paths.dir, { verb: 'reload' })).rejects.toThrow(/did you mean backends/);
    expect(await callDaemon(paths.dir, { verb: 'status' })).toMatchObject({ backends: [{ id: 'gpu' }] });
  });

  test('a rotated credential is kept for the next start, closed to others, before the link is made anew with it', async () => {
    const { paths, heard, started, channel, log } = await running();
    const renewed = await callDaemon(paths.dir, { verb: 'credential', credential: 'fln_new' });
    expect(renewed).toEqual({ ok: true, name: 'box', in_use: true });
    expect(await readCredential(paths)).toMatchObject({ node_id: 'node_1', credential: 'fln_new' });
    expect((await stat(paths.credential)).mode & 0o777).toBe(0o600);
    await until(() => expect(heard).toEqual([{ type: 'credential', credential: 'fln_new' }]));
    channel.postMessage({ crash: 'boom' } satisfies FromTest);
    await until(() => expect(started).toHaveLength(2));
    expect(started[1]?.credential).toBe('fln_new');
    expect(JSON.stringify(log.lines)).not.toContain('fln_');
  });

  test('what is no credential of a node is refused without being repeated', async () => {
    const { paths, heard } = await running();
    const refused = callDaemon(paths.dir, { verb: 'credential', credential: 'flk_oops' });
    await expect(refused).rejects.toThrow(/^(?!.*flk_oops)/);
    expect(await readCredential(paths)).toMatchObject({ credential: 'fln_secret' });
    expect(heard).toEqual([]);
  });

  test('a crashed link thread comes back under the same boot id, and the status counts it', async () => {
    const { started, channel, get, log } = await running();
    channel.postMessage({ crash: 'boom' } satisfies FromTest);
    await until(() => expect(started).toHaveLength(2));
    expect(started[1]?.boot_id).toBe(started[0]?.boot_id);
    expect(JSON.parse((await get('/status')).text)).toMatchObject({ link: { restarts: 1 } });
    expect(
      log.lines.some(({ level, message }) => level === 'error' && message.includes('link thread crashed')),
    ).toBe(true);
  });

  test('the main thread’s progress rises: a hang would show in the beat', async () => {
    const { paths, json } = await running({
      flags: { heartbeat_stale_ms: 2_000, status_port: 0, find_backends: false },
    });
    await until(async () => expect((await json(paths.heartbeat))['progress_seq']).toBeGreaterThan(2));
  });
});

describe('the end', () => {
  test('`stopping` is on disk before the link thread is told to drain; drained, it exits 0 and leaves `stopped`', async () => {
    const { paths, stop, heard, ended, json, say, on_disk_at_drain } = await running({ answer_drain: false });
    stop.abort();
    await until(() =>
      expect(heard).toMatchObject([{ type: 'drain', deadline_ms: expect.closeTo(60_000, -3) as number }]),
    );
    expect(on_disk_at_drain).toEqual(['stopping']);
    say({ type: 'stopped', why: 'drained', message: '', released: 0, kept: 0 });
    expect(await ended).toBe(0);
    expect(await json(paths.heartbeat)).toMatchObject({ status: 'stopped', link: 'disconnected' });
    await expect(access(paths.control)).rejects.toThrow('ENOENT');
    await expect(access(paths.status)).rejects.toThrow('ENOENT');
  });

  test('asked a second time it ends at once', async () => {
    const { kill, stop, heard, ended } = await running({ answer_drain: false });
    stop.abort();
    await until(() => expect(heard).toHaveLength(1));
    kill.abort();
    expect(await ended).toBe(1);
  });

  test('`drain` answers at once or when the work has ended; a nearer deadline wins', async () => {
    const { paths, heard, say, ended } = await running({ answer_drain: false });
    expect(await callDaemon(paths.dir, { verb: 'drain', deadline_ms: 50_000 })).toEqual({
      ok: true,
      draining: true,
      deadline_ms: 50_000,
    });
    const waiting = callDaemon(paths.dir, { verb: 'drain', deadline_ms: 1_000, wait: true });
    await until(() => expect(heard).toHaveLength(2));
    expect(
      heard.map((message) => message.type === 'drain' && Math.round(message.deadline_ms / 1_000)),
    ).toEqual([50, 1]);
    say({ type: 'stopped', why: 'drained', message: '', released: 0, kept: 0 });
    expect(await waiting).toEqual({ ok: true, drained: true, released: 0 });
    expect(await ended).toBe(0);
  });

  test.each([
    ['drain', { ok: true, drained: false, released: 2 }],
    ['leave', { ok: true, left: true, deregistered: false, released: 2 }],
  ] as const)(
    '`%s` whose deadline cut requests says how many; the exit code is that of a drain',
    async (verb, answer) => {
      const { paths, heard, say, ended, log } = await running({ answer_drain: false });
      const waiting = callDaemon(paths.dir, verb === 'drain' ? { verb, wait: true } : { verb });
      await until(() => expect(heard).toHaveLength(1));
      say({ type: 'stopped', why: 'drained', message: '', released: 2, kept: 0 });
      expect(await waiting).toEqual(answer);
      expect(await ended).toBe(0);
      expect(log.lines).toContainEqual({
        level: 'warn',
        fields: { released: 2 },
        message: expect.stringContaining('cut') as string,
      });
    },
  );

  test('`drain` that is overtaken by a second signal was none, and says what was at work', async () => {
    const { paths, heard, say, kill, ended, get } = await running({ answer_drain: false });
    const attempt = { job: 'job_1', attempt: 1, backend: 'gpu', model: 'm', state: 'running', age_ms: 5 };
    say({ type: 'load', pools: [], attempts: [attempt], ended: [] });
    await until(async () => expect((await get('/status')).text).toContain('job_1'));
    const waiting = callDaemon(paths.dir, { verb: 'drain', wait: true });
    await until(() => expect(heard).toHaveLength(1));
    kill.abort();
    expect(await waiting).toEqual({ ok: true, drained: false, released: 1 });
    expect(await ended).toBe(1);
  });

  test('while it leaves, a rotated credential is refused: it would be found on disk afterwards', async () => {
    const { paths, heard, say } = await running({ answer_drain: false });
    const leaving = callDaemon(paths.dir, { verb: 'leave' });
    await until(() => expect(heard).toHaveLength(1));
    const late = callDaemon(paths.dir, { verb: 'credential', credential: 'fln_new' });
    await expect(late).rejects.toMatchObject({ code: 'stopping' });
    say({ type: 'stopped', why: 'drained', message: '', released: 0, kept: 0 });
    await leaving;
    expect(await readCredential(paths)).toBeNull();
  });

  test('`leave` drains, deregisters and then deletes the credential', async () => {
    const { paths, say, heard, ended, json } = await running({ answer_drain: false });
    say(connected);
    await until(async () => expect(await json(paths.heartbeat)).toMatchObject({ link: 'connected' }));
    const leaving = callDaemon(paths.dir, { verb: 'leave', deadline_ms: 5_000 });
    await until(() => expect(heard).toMatchObject([{ type: 'drain', reason: 'leave' }]));
    expect(await readCredential(paths)).not.toBeNull();
    say({ type: 'stopped', why: 'drained', message: '', released: 0, kept: 0 });
    expect(await leaving).toEqual({ ok: true, left: true, deregistered: true, released: 0 });
    expect(await readCredential(paths)).toBeNull();
    expect(await ended).toBe(0);
  });

  test.each(['revoked', 'superseded', 'protocol'] as const)(
    '%s by the control plane, it says so, writes `stopping` before the link lets its work go, and exits 3',
    async (why) => {
      const { say, ended, log, json, paths, heard, on_disk_at_drain } = await running({
        answer_drain: false,
      });
      const message = 'The credential was withdrawn.';
      say({ type: 'stopping', why, message });
      await until(() => expect(heard).toEqual([{ type: 'drain', deadline_ms: 0, reason: why }]));
      expect(on_disk_at_drain).toEqual(['stopping']);
      say({ type: 'stopped', why, message, released: 1, kept: 0 });
      expect(await ended).toBe(3);
      expect(log.lines.filter(({ level }) => level === 'error').map((line) => line.message)).toEqual([
        'This node stops for good: The credential was withdrawn.',
      ]);
      expect(await json(paths.heartbeat)).toMatchObject({ status: 'stopped', link: 'disconnected' });
    },
  );
});
