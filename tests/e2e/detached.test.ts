import type { ExplainView, JobBatchVerdicts, JobView } from '@flotilla/protocol';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { run, start } from '../../packages/cli/src/testing/command.ts';
import { type ScriptedBackend, type SeenRequest, chatAnswer } from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';
import { type TestNode, type World, openWorld } from '../support/world.ts';

/** Jobs that nobody waits for, as their clients see them. */
let world: World;
let backend: ScriptedBackend;
let node: TestNode;
let own: string;
const request = { messages: [{ role: 'user', content: 'Hello' }] };
const JSON_HEAD = { 'content-type': 'application/json' };
/** Ends every answer that waits. */
let finish: () => void;
let finished: Promise<void>;

beforeAll(async () => {
  world = await openWorld();
  backend = await world.backend(sound);
  node = await world.node({ name: 'box', backends: [{ url: backend.url, slots: 4 }] });
  own = await world.key({ scopes: ['jobs'] });
});
afterAll(() => world.close());

const sound = (_: SeenRequest, response: Parameters<ScriptedBackend['answer']>[1]) =>
  void response.writeHead(200, JSON_HEAD).end(chatAnswer('Done.'));

/** Requests wait until `finish`. */
function hold(): void {
  ({ promise: finished, resolve: finish } = Promise.withResolvers<void>());
  backend.answer = async (seen, response) => {
    await finished;
    sound(seen, response);
  };
}

async function submit(body: Record<string, unknown> = {}, key = own): Promise<string> {
  const job = { model: 'scripted', request, ...body };
  return (await world.plane.send<{ id: string }>('POST', '/api/v1/jobs', job, key)).id;
}

const show = (id: string, key = own) => world.plane.get<JobView>(`/api/v1/jobs/${id}`, key);

function ended(id: string): Promise<JobView> {
  return until(`${id} has ended`, async () => {
    const job = await show(id);
    return job.finished_at !== null && job;
  });
}

function running(id: string): Promise<JobView> {
  return until(`${id} runs`, async () => {
    const job = await show(id);
    return job.state === 'running' && job;
  });
}

async function call(
  method: string,
  path: string,
  init: { key?: string; body?: string; headers?: object } = {},
) {
  const { key = own, body, headers } = init;
  const reply = await fetch(`${world.plane.url}${path}`, {
    method,
    headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json', ...headers },
    ...(body !== undefined && { body }),
  });
  const text = await reply.text();
  return { status: reply.status, text, json: text.startsWith('{') ? JSON.parse(text) : null };
}

describe('a detached job', () => {
  test('is acknowledged, served by a node, and keeps its answer, with one usage row', async () => {
    backend.answer = sound;
    const submitted = await call('POST', '/api/v1/jobs', {
      body: JSON.stringify({ model: 'scripted', request, metadata: { batch: 7 }, priority: 2 }),
    });
    expect(submitted.status).toBe(202);
    const job = await ended(submitted.json.id);
    expect(job).toMatchObject({
      state: 'succeeded',
      attached: false,
      attempts: [{ attempt: 1, outcome: 'succeeded', node: null }],
      metadata: { batch: 7 },
      priority: 2,
      result: JSON.parse(chatAnswer('Done.')),
    });
    expect(Date.parse(job.bodies_kept_until!)).toBeGreaterThan(Date.now() + 23 * 3_600_000);
    const rows = (await world.usage()).filter((row) => row.job === job.id);
    expect(rows).toMatchObject([
      { outcome: 'succeeded', prompt_tokens: 3, completion_tokens: 5, attempts: 1 },
    ]);
  });

  test('carries request and answer digit for digit', async () => {
    const answer = '{"choices":[],  "seed": 12345678901234567890, "text":"\\u00e4 \\u0000"}';
    backend.answer = (_seen, response) => void response.writeHead(200, JSON_HEAD).end(answer);
    const asked = '{"messages":[],"seed":12345678901234567890,  "note":"\\ud83d\\ude00"}';
    const { json } = await call('POST', '/api/v1/jobs', { body: `{"model":"scripted","request":${asked}}` });
    const id = json.id as string;
    await ended(id);
    const body = backend.requests.at(-1)!.body.toString();
    expect(body).toBe(`${asked.slice(0, -1)},"model":"scripted"}`);
    expect((await call('GET', `/api/v1/jobs/${id}/result`)).text).toBe(answer);
    expect((await call('GET', `/api/v1/jobs/${id}`)).text).toContain(`"result":${answer}`);
  });

  test('runs on several slots at once, and more wait for a free one', async () => {
    hold();
    const ids = await Promise.all(Array.from({ length: 6 }, () => submit()));
    await until('all slots are taken', () => backend.in_flight === 4);
    const states = await Promise.all(ids.map(async (id) => (await show(id)).state));
    expect(states.filter((state) => state === 'queued')).toHaveLength(2);
    finish();
    for (const id of ids) expect((await ended(id)).state).toBe('succeeded');
  });

  test('counts in the memory for bodies from its claim to its end', async () => {
    const held = async () => {
      const metrics = await fetch(`${world.plane.url}/metrics`).then((reply) => reply.text());
      return Number(/^flotilla_body_bytes (\d+)$/m.exec(metrics)?.[1]);
    };
    hold();
    const before = await held();
    const id = await submit({ request: { messages: [{ role: 'user', content: 'x'.repeat(100_000) }] } });
    await running(id);
    expect(await held()).toBeGreaterThan(before + 100_000);
    finish();
    await ended(id);
    await until('its memory is free', async () => (await held()) === before);
  });

  test('is told of by events: as it is, then each transition, until it has ended', async () => {
    hold();
    const id = await submit();
    await running(id);
    const reply = await fetch(`${world.plane.url}/api/v1/jobs/${id}/events`, {
      headers: { authorization: `Bearer ${own}` },
    });
    expect(reply.headers.get('content-type')).toContain('text/event-stream');
    // As every answer has them, though this one is written past the server.
    expect(reply.headers.get('cache-control')).toBe('no-store');
    expect(reply.headers.get('x-content-type-options')).toBe('nosniff');
    const reader = reply.body!.pipeThrough(new TextDecoderStream()).getReader();
    let text = (await reader.read()).value!;
    finish();
    for (let next = await reader.read(); !next.done; next = await reader.read()) text += next.value;
    const states = [...text.matchAll(/^data: (.*)$/gm)].map(
      ([, data]) => (JSON.parse(data!) as JobView).state,
    );
    expect(states).toEqual(['running', 'succeeded']);
    // Which node it was is for those who may read nodes.
    expect(text).not.toContain(node.id);
  });

  test('is listened to a hundred times by one key, and by other keys all the same', async () => {
    hold();
    const id = await submit();
    const away = new AbortController();
    const listen = (key: string) =>
      fetch(`${world.plane.url}/api/v1/jobs/${id}/events`, {
        headers: { authorization: `Bearer ${key}` },
        signal: away.signal,
      });
    const replies = await Promise.all(Array.from({ length: 100 }, () => listen(own)));
    expect(new Set(replies.map(({ status }) => status))).toEqual(new Set([200]));
    const refused = await listen(own);
    expect([refused.status, refused.headers.get('retry-after')]).toEqual([429, '5']);
    expect(await refused.json()).toMatchObject({
      error: { code: 'rate_limited', message: expect.stringContaining('close some') },
    });
    expect((await listen(world.plane.admin_key)).status).toBe(200);
    away.abort();
    finish();
    await ended(id);
    // Who has gone takes no place.
    await until('there is room again', async () => {
      const reply = await call('GET', `/api/v1/jobs/${id}/events`);
      return reply.status === 200 && reply.text.includes('succeeded');
    });
  });

  test('that is cancelled frees the backend, and takes no result', async () => {
    hold();
    const id = await submit();
    await running(id);
    expect(await world.plane.send('POST', `/api/v1/jobs/${id}/cancel`, {}, own)).toMatchObject({
      state: 'cancelled',
    });
    await until('the backend is free', () => backend.in_flight === 0);
    finish();
    expect(await show(id)).toMatchObject({ state: 'cancelled', error: { code: 'cancelled' }, result: null });
    const rows = (await world.usage()).filter((row) => row.job === id);
    expect(rows).toMatchObject([{ outcome: 'cancelled' }]);
    await until('the slot is free', async () => (await node.view()).pools[0]!.reserved === 0);
  });

  test('that runs longer than it may is timed out, and its node stops', async () => {
    hold();
    const id = await submit({ run_timeout_ms: 300 });
    const job = await ended(id);
    expect(job).toMatchObject({ state: 'timed_out', error: { code: 'run_timeout' } });
    await until('the backend is free', () => backend.in_flight === 0);
    finish();
  });

  test('that a backend refuses has failed with the reason, and is not tried again', async () => {
    const before = backend.requests.length;
    backend.answer = (_seen, response) =>
      void response.writeHead(400, JSON_HEAD).end('{"error":{"message":"too many tokens"}}');
    const job = await ended(await submit());
    expect(job).toMatchObject({ state: 'failed', error: { code: 'invalid_request' } });
    expect(job.result).toEqual({ error: { message: 'too many tokens' } });
    expect(backend.requests.length).toBe(before + 1);
  });

  test('that fails three times is exhausted, with the story of each attempt', async () => {
    backend.answer = (_seen, response) => void response.writeHead(500, JSON_HEAD).end('{}');
    const job = await ended(await submit());
    expect(job).toMatchObject({ state: 'failed', error: { code: 'attempts_exhausted' } });
    expect(job.attempts.map(({ attempt, outcome }) => [attempt, outcome])).toEqual([
      [1, 'backend_error'],
      [2, 'backend_error'],
      [3, 'backend_error'],
    ]);
    backend.answer = sound;
    await until('the backend is healthy', async () => (await node.view()).backends[0]!.health === 'healthy');
  });

  test('takes no page of a proxy for an answer, and tries again', async () => {
    let asked = 0;
    backend.answer = (seen, response) =>
      ++asked > 1 ? sound(seen, response) : void response.writeHead(200, JSON_HEAD).end('<html>');
    const job = await ended(await submit());
    expect(job.attempts).toMatchObject([
      { outcome: 'backend_error', message: expect.stringContaining('not JSON') },
      { outcome: 'succeeded' },
    ]);
  });

  test('has the metadata that was sent, or is refused: nothing of it is rounded or left out in silence', async () => {
    const refused = async (metadata: string) => {
      const body = `{"model":"scripted","request":{"messages":[]},"metadata":${metadata}}`;
      const single = (await call('POST', '/api/v1/jobs', { body })).json.error;
      const { json } = await call('POST', '/api/v1/jobs/batch', { body: `{"jobs":[${body}]}` });
      expect(json.data).toMatchObject([{ error: { param: single.param, message: single.message } }]);
      return `${single.code} ${single.param}: ${single.message}`;
    };
    for (const number of ['9007199254740993', '-9007199254740993', '1e20'])
      expect(await refused(`{"id":${number}}`)).toMatch(/^invalid_request metadata.id: .*send it as text/);
    expect(await refused('{"__proto__":"x"}')).toMatch(/^invalid_request metadata.__proto__: /);
    const metadata = { most: 2 ** 53 - 1, part: 0.5, text: '9007199254740993', yes: true, none: null };
    expect((await show(await submit({ metadata }))).metadata).toEqual(metadata);
  });

  test('asks for no stream, and for no model that nobody has', async () => {
    const streaming = JSON.stringify({ model: 'scripted', request: { ...request, stream: true } });
    expect((await call('POST', '/api/v1/jobs', { body: streaming })).json.error).toMatchObject({
      code: 'invalid_request',
      param: 'request.stream',
    });
    const unknown = JSON.stringify({ model: 'nobody-has-it', request });
    expect(await call('POST', '/api/v1/jobs', { body: unknown })).toMatchObject({ status: 404 });
  });

  test('is explained while it waits: every node with its reason', async () => {
    await world.plane.send('POST', `/api/v1/nodes/${node.id}/cordon`, {});
    const id = await submit();
    const explanation = await world.plane.get<ExplainView>(`/api/v1/jobs/${id}/explain`, own);
    expect(explanation).toMatchObject({ state: 'queued', nodes: [{ verdict: 'cordoned' }] });
    await world.plane.send('POST', `/api/v1/nodes/${node.id}/uncordon`, {});
    expect((await ended(id)).state).toBe('succeeded');
  });
});

describe('an idempotency key', () => {
  const body = JSON.stringify({ model: 'scripted', request });
  const send = (key: string, text = body) =>
    call('POST', '/api/v1/jobs', { body: text, headers: { 'idempotency-key': key } });

  test('makes one job of a request that is sent again, and refuses another body with 409', async () => {
    const first = await send('once');
    const again = await send('once');
    expect([first.status, again.status]).toEqual([202, 202]);
    expect(again.json).toMatchObject({ id: first.json.id, existing: true });
    const other = await send('once', JSON.stringify({ model: 'scripted', request: { messages: [] } }));
    expect(other).toMatchObject({ status: 409, json: { error: { code: 'conflict', job: first.json.id } } });
  });

  test('that is none is refused', async () => {
    expect(await send('with spaces in it')).toMatchObject({ status: 400 });
  });
});

describe('a batch', () => {
  test('gives each job its own verdict, in order', async () => {
    const jobs = [
      { model: 'scripted', request, idempotency_key: 'b1' },
      { model: 'nobody-has-it', request },
      { model: 'scripted', request: { messages: 'none' } },
      { model: 'scripted', request, idempotency_key: 'b1' },
      { model: 'scripted', request: { messages: [] }, idempotency_key: 'b1' },
      { model: 'scripted' },
      { model: 'scripted', request: { messages: [], note: 'a\0b' } },
      { model: ['scripted'], request },
      'no job at all',
      { model: 'scripted', request, idempotency_key: 'b2' },
    ];
    const { data } = await world.plane.send<JobBatchVerdicts>('POST', '/api/v1/jobs/batch', { jobs }, own);
    expect(data).toMatchObject([
      { state: 'queued', existing: false },
      { error: { code: 'model_not_found' } },
      { error: { code: 'invalid_request', param: 'messages' } },
      { existing: true },
      { error: { code: 'conflict' } },
      { error: { code: 'invalid_request', param: 'request' } },
      { error: { code: 'invalid_request', param: 'request.note' } },
      { error: { code: 'invalid_request', param: 'model' } },
      { error: { code: 'invalid_request' } },
      { state: 'queued', existing: false },
    ]);
    for (const one of [data.at(0), data.at(-1)])
      expect((await ended((one as { id: string }).id)).state).toBe('succeeded');
  });

  test('with one idempotency key for all of it is refused, and told where each job has its own', async () => {
    const body = JSON.stringify({ jobs: [{ model: 'scripted', request }] });
    const refused = await call('POST', '/api/v1/jobs/batch', { body, headers: { 'idempotency-key': 'all' } });
    expect(refused).toMatchObject({ status: 400, json: { error: { code: 'invalid_request' } } });
    expect(refused.json.error.message).toContain('`idempotency_key`');
  });

  test('of more than 1,000 jobs is refused whole', async () => {
    const jobs = Array.from({ length: 1001 }, () => ({ model: 'scripted', request }));
    expect(await call('POST', '/api/v1/jobs/batch', { body: JSON.stringify({ jobs }) })).toMatchObject({
      status: 400,
    });
  });
});

describe('a key', () => {
  test('sees, lists and ends only what it created: another one’s job does not exist for it', async () => {
    const id = await submit();
    await ended(id);
    const stranger = await world.key({ scopes: ['jobs'] });
    for (const [method, path] of [
      ['GET', ''],
      ['GET', '/result'],
      ['GET', '/events'],
      ['GET', '/explain'],
      ['POST', '/cancel'],
      ['DELETE', ''],
    ] as const) {
      const reply = await call(method, `/api/v1/jobs/${id}${path}`, { key: stranger });
      expect([path, reply.status]).toEqual([path, 404]);
    }
    expect((await world.plane.get<{ data: JobView[] }>('/api/v1/jobs', stranger)).data).toEqual([]);
    const mine = await world.plane.get<{ data: JobView[] }>('/api/v1/jobs', own);
    expect(mine.data.map((job) => job.id)).toContain(id);
    expect((await show(id, world.plane.admin_key)).attempts[0]!.node).toBe(node.id);
  });
});

describe('what is erased', () => {
  test('is gone at once when asked for: request and result, not the record', async () => {
    const id = await submit();
    await ended(id);
    expect((await call('DELETE', `/api/v1/jobs/${id}`)).status).toBe(204);
    expect(await show(id)).toMatchObject({ state: 'succeeded', result: null, bodies_kept_until: null });
    expect(await call('GET', `/api/v1/jobs/${id}/result`)).toMatchObject({ status: 404 });
  });

  test('is ended first where it is open', async () => {
    hold();
    const id = await submit();
    await running(id);
    expect((await call('DELETE', `/api/v1/jobs/${id}`)).status).toBe(204);
    await until('the backend is free', () => backend.in_flight === 0);
    expect(await show(id)).toMatchObject({ state: 'cancelled', result: null });
    finish();
    backend.answer = sound;
  });

  test('goes by itself when its retention is over', async () => {
    const id = await submit({ retention_ms: 0 });
    await ended(id);
    const gone = await until('it is erased', async () => {
      const reply = await call('GET', `/api/v1/jobs/${id}/result`);
      return reply.status === 404 && reply;
    });
    expect(gone.json.error.message).toContain('erased');
  });
});

describe('flotilla jobs', () => {
  const flotilla = (args: string[], input?: string) => run(['jobs', ...args], connection(), input);
  const connection = () => ({ FLOTILLA_URL: world.plane.url, FLOTILLA_API_KEY: own });

  test('submit takes a message, waits, and prints the words of the answer', async () => {
    backend.answer = sound;
    const args = ['submit', '-m', 'scripted', '--message', 'Hello', '--priority', '3', '--wait', '--text'];
    const submitted = await flotilla(args);
    expect(submitted).toMatchObject({ code: 0, stdout: 'Done.\n' });
    const [id] = /job_\w+/.exec(submitted.stderr)!;
    expect(await show(id)).toMatchObject({ state: 'succeeded', priority: 3 });
  });

  test('submit takes a request from stdin digit for digit, result prints the answer so, and delete erases both', async () => {
    const answer = '{"choices":[],  "seed": 12345678901234567890}';
    backend.answer = (_seen, response) => void response.writeHead(200, JSON_HEAD).end(answer);
    const asked = '{"model": "scripted","messages":[],"seed":12345678901234567890, "top_p":0.10}';
    const submitted = await flotilla(['submit', '--wait'], asked);
    expect(submitted).toMatchObject({ code: 0, stdout: answer });
    expect(backend.requests.at(-1)!.body.toString()).toBe(asked);
    const [, id] = /(job_\w+)/.exec(submitted.stderr)!;
    expect(await flotilla(['result', id!])).toMatchObject({ code: 0, stdout: answer });
    const shown = await flotilla(['show', id!, '--json']);
    expect(shown.stdout).toContain('"seed":12345678901234567890');
    const whole = await flotilla(['submit', '--wait', '--json'], asked);
    expect(JSON.parse(whole.stdout)).toMatchObject({ state: 'succeeded', result: { choices: [] } });
    expect(whole.stdout).toContain('"result":{"choices":[],"seed":12345678901234567890}');
    expect((await flotilla(['delete', id!])).code).toBe(0);
    expect(await flotilla(['result', id!])).toMatchObject({ code: 1, stdout: '' });
  });

  test('submit of lines says what became of each, and makes no second job when run again', async () => {
    backend.answer = sound;
    const file = join(world.dir, 'night.jsonl');
    const line = JSON.stringify({ model: 'scripted', messages: [] });
    const job = JSON.stringify({ model: 'scripted', request, metadata: { of: 'the night' } });
    await writeFile(
      file,
      [
        ...[line, job, '', 'no json', line, '{"model":"nobody-has-it","messages":[]}'],
        JSON.stringify({ model: 'scripted', messages: [], note: 'a\0b' }),
      ].join('\n'),
    );
    const first = await flotilla(['submit', file, '--wait', '--json']);
    expect(first.code).toBe(1);
    expect(first.stderr).toContain('3 accepted, 3 refused');
    const told = first.stdout
      .trim()
      .split('\n')
      .map((text) => JSON.parse(text));
    const result = { choices: [{ message: { content: 'Done.' } }] };
    expect(told).toMatchObject([
      { line: 4, error: { code: 'invalid_request' } },
      { line: 6, error: { code: 'model_not_found' } },
      { line: 7, error: { code: 'invalid_request', param: 'request.note' } },
      { line: 1, state: 'succeeded', result },
      { line: 2, state: 'succeeded', metadata: { of: 'the night' }, result },
      { line: 5, state: 'succeeded', result },
    ]);
    const again = await flotilla(['submit', file]);
    expect(again.stderr).toContain('0 accepted, 3 submitted before, 3 refused');
    expect(again.stdout.trim().split('\n')).toEqual(told.slice(3).map(({ id }) => id));
  });

  test('watch shows each step, and its exit code tells the outcome', async () => {
    hold();
    const id = await submit();
    await running(id);
    const watching = start(['jobs', 'watch', id], connection());
    await until('it shows the job', () => watching.output.stdout.includes('running'));
    expect((await flotilla(['cancel', id])).code).toBe(0);
    expect(await watching.ended).toMatchObject({ code: 1 });
    expect(watching.output.stdout).toMatch(/^running\ncancelled after .*: cancelled: .*\n$/);
    finish();
  });

  test('submit ends with 1 and the reason where the file is not there, or the job fails', async () => {
    const missing = await flotilla(['submit', join(world.dir, 'missing.jsonl')]);
    expect(missing).toMatchObject({ code: 1, stdout: '' });
    expect(missing.stderr).toMatch(/^error: .*missing.jsonl cannot be read: .*\n$/);
    backend.answer = (_seen, response) => void response.writeHead(400, JSON_HEAD).end('{"error":{}}');
    const failed = await flotilla(['submit', '-m', 'scripted', '--message', 'x', '--wait']);
    expect(failed).toMatchObject({ code: 1, stdout: '' });
    expect(failed.stderr).toMatch(/invalid_request: .*\nIts attempts: flotilla jobs show job_/);
    const told = await flotilla(['submit', '-m', 'scripted', '--message', 'x', '--wait', '--json']);
    expect(told.code).toBe(1);
    expect(JSON.parse(told.stdout)).toMatchObject({ state: 'failed', result: { error: {} } });
    backend.answer = sound;
  });
});
