import { once } from 'node:events';
import { type Server, type ServerResponse, createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type Log, type NodeRecord, timings } from '@flotilla/core';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { systemRandom } from '../clock.ts';
import type { ActiveJob, JobEnd, JobRequest } from '../dispatch/active-job.ts';
import { type Attempt, newAttempt } from '../dispatch/attempt.ts';
import { type Dispatcher, createDispatcher } from '../dispatch/dispatcher.ts';
import { createRoster } from '../fleet/roster.ts';
import { createModelRoutes } from '../upstreams/model-routes.ts';
import { ManualClock } from '@flotilla/core/testing';
import { Answer, type AnswerOutcome } from './answer.ts';

/**
 * An answer between a real dispatcher, where its job waits for a node that is away, and a real client. The clock stands
 * still until a test moves it; the record is committed when a test says so.
 */
const EVENT = 'data: {"choices":[{"delta":{"content":"hi"},"finish_reason":null}]}\n\n';
const LAST = 'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n';
const DONE = 'data: [DONE]\n\n';
const quiet: Log = { debug() {}, info() {}, warn() {}, error() {} };

let server: Server;
let clock: ManualClock;
let dispatcher: Dispatcher;
let response: ServerResponse;
let settled: { outcome: AnswerOutcome; commit: () => void; fail: () => void }[];

beforeEach(async () => {
  clock = new ManualClock();
  settled = [];
  const roster = createRoster(clock, timings(5000));
  roster.load([awayNode()], []);
  const node = roster.find('node_1')!;
  node.liveness = { ...node.liveness, state: 'suspect' };
  roster.sync(node);
  dispatcher = createDispatcher({
    clock,
    random: systemRandom,
    log: quiet,
    replica: 'rep_1',
    places: createModelRoutes(roster, { spots: () => undefined }),
    settings: {
      queue_timeout_ms: 60_000,
      run_timeout_ms: 600_000,
      first_byte_timeout_ms: 300_000,
      idle_timeout_ms: 120_000,
      queue_bound: 1000,
    },
    metrics: { attemptEnded() {}, queueWaited() {} },
    record() {},
  });
  server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
});
afterEach(() => {
  server.closeAllConnections();
  server.close();
});

describe('a stream', () => {
  it('that has waited 10 s gets a 200 and comments with its position, and then errors in the stream', async () => {
    const { answer, reply } = await ask({ streaming: true });
    clock.advance(9_999);
    expect(response.headersSent).toBe(false);
    clock.advance(1);
    const { status, headers, rest } = await reply;
    expect(status).toBe(200);
    expect(headers.get('content-type')).toContain('text/event-stream');
    answer.finished(failed('queue_timeout', 'Too late.'));
    const body = await rest();
    expect(body).toContain(': waiting, 0 before this one\n\n');
    expect(body).toContain('"code":"queue_timeout"');
    expect(body).not.toContain('[DONE]');
  });

  it('that has had comments is told in the stream what its backend refuses, in its words', async () => {
    const { answer, job, reply } = await ask({ streaming: true });
    clock.advance(10_000);
    const { part, rest } = await reply;
    await part();
    const attempt = begin(answer, job, 'application/json', 400);
    answer.body(attempt, bytes('{"error":\n{"message":"too long","code":"context"}}'));
    answer.finished(success(attempt));
    expect(settled[0]!.outcome).toMatchObject({ outcome: 'invalid_request', status: 400 });
    settled[0]!.commit();
    expect(await rest()).toBe('data: {"error":\ndata: {"message":"too long","code":"context"}}\n\n');
  });

  it('keeps its [DONE] back until the record is committed', async () => {
    const { answer, job, reply } = await ask({ streaming: true });
    const attempt = begin(answer, job, 'text/event-stream');
    answer.body(attempt, bytes(EVENT + LAST + DONE));
    const { part, rest } = await reply;
    expect(await part()).toBe(EVENT + LAST);
    answer.finished(success(attempt));
    expect(settled[0]!.outcome).toMatchObject({ outcome: 'succeeded', status: 200 });
    settled[0]!.commit();
    expect(await rest()).toBe(DONE);
  });

  it('whose record cannot be committed ends in an error, without [DONE]', async () => {
    const { answer, job, reply } = await ask({ streaming: true });
    const attempt = begin(answer, job, 'text/event-stream');
    answer.body(attempt, bytes(EVENT + DONE));
    answer.finished(success(attempt));
    settled[0]!.fail();
    const body = await (await reply).rest();
    expect(body).toContain('"code":"unavailable"');
    expect(body).not.toContain('[DONE]');
    expect(settled[1]!.outcome).toMatchObject({ outcome: 'unavailable', end: { state: 'failed' } });
  });

  it('without [DONE] is no success', async () => {
    const { answer, job } = await ask({ streaming: true });
    const attempt = begin(answer, job, 'text/event-stream');
    answer.body(attempt, bytes(EVENT + LAST));
    expect(answer.fault(success(attempt).result!)).toMatch(/\[DONE\]/);
    answer.body(attempt, bytes(DONE));
    expect(answer.fault(success(attempt).result!)).toBeNull();
  });

  it('whose client leaves after its finish_reason was served', async () => {
    const { answer, job, reply } = await ask({ streaming: true });
    const attempt = begin(answer, job, 'text/event-stream');
    answer.body(attempt, bytes(EVENT + LAST));
    const { leave, part } = await reply;
    await part();
    const closed = once(response, 'close');
    await leave();
    await closed;
    expect(settled[0]!.outcome).toMatchObject({ outcome: 'succeeded', status: 200 });
  });

  it('whose client leaves before that was cancelled', async () => {
    const { answer, job, reply } = await ask({ streaming: true });
    const attempt = begin(answer, job, 'text/event-stream');
    answer.body(attempt, bytes(EVENT));
    const { leave, part } = await reply;
    await part();
    const closed = once(response, 'close');
    await leave();
    await closed;
    expect(settled[0]!.outcome).toMatchObject({ outcome: 'cancelled', status: 499 });
    expect(job.kernel.state).toBe('cancelled');
  });
});

describe('a whole answer', () => {
  it('of up to 1 MiB waits for its record, so that its status stays true', async () => {
    const { answer, job, reply } = await ask({ streaming: false });
    const attempt = begin(answer, job, 'application/json');
    answer.body(attempt, bytes('{"a":1}'));
    answer.finished(success(attempt));
    expect(response.headersSent).toBe(false);
    settled[0]!.commit();
    const { status, headers, rest } = await reply;
    expect([status, await rest()]).toEqual([200, '{"a":1}']);
    expect(headers.get('content-length')).toBe('7');
  });

  it('whose record cannot be committed is a 503 that may be repeated', async () => {
    const { answer, job, reply } = await ask({ streaming: false });
    const attempt = begin(answer, job, 'application/json');
    answer.body(attempt, bytes('{"a":1}'));
    answer.finished(success(attempt));
    settled[0]!.fail();
    const { status, headers, rest } = await reply;
    expect(status).toBe(503);
    expect(headers.get('retry-after')).not.toBeNull();
    expect(JSON.parse(await rest())).toMatchObject({ error: { code: 'unavailable' } });
    expect(settled[1]!.outcome).toMatchObject({ outcome: 'unavailable', status: 503 });
  });

  it('of 3 MiB flows, but for its last piece', async () => {
    const { answer, job, reply } = await ask({ streaming: false });
    const attempt = begin(answer, job, 'application/json');
    const piece = bytes(`"${'x'.repeat(65_534)}"`);
    for (let index = 0; index < 48; index++) answer.body(attempt, piece);
    const { status, part, rest } = await reply;
    expect(status).toBe(200);
    let seen = 0;
    while (seen < 47 * piece.byteLength) seen += (await part()).length;
    expect(seen).toBe(47 * piece.byteLength);
    answer.finished(success(attempt));
    settled[0]!.commit();
    expect((await rest()).length).toBe(piece.byteLength);
  });

  it('of 3 MiB whose record cannot be committed is cut off, so that nobody takes it for whole', async () => {
    const { answer, job, reply } = await ask({ streaming: false });
    const attempt = begin(answer, job, 'application/json');
    for (let index = 0; index < 48; index++) answer.body(attempt, bytes('x'.repeat(65_536)));
    const { rest } = await reply;
    answer.finished(success(attempt));
    settled[0]!.fail();
    await expect(rest()).rejects.toThrow('terminated');
  });

  it('that is not JSON is no success', async () => {
    const { answer, job } = await ask({ streaming: false });
    const attempt = begin(answer, job, 'application/json');
    answer.body(attempt, bytes('{"a":'));
    expect(answer.fault(success(attempt).result!)).toMatch(/JSON/);
  });

  it('begins anew with another attempt, and nothing of the first reaches the client', async () => {
    const { answer, job, reply } = await ask({ streaming: false });
    answer.body(begin(answer, job, 'application/json'), bytes('{"first":'));
    answer.discard();
    const attempt = begin(answer, job, 'application/json');
    answer.body(attempt, bytes('{"second":2}'));
    answer.finished(success(attempt));
    settled[0]!.commit();
    expect(await (await reply).rest()).toBe('{"second":2}');
  });
});

async function ask({ streaming }: { streaming: boolean }) {
  // The list of this test: an earlier test's client may leave only now.
  const records = settled;
  const requested = once(server, 'request');
  const { port } = server.address() as AddressInfo;
  const left = new AbortController();
  const reply = fetch(`http://127.0.0.1:${port}/`, { signal: left.signal }).then(read);
  reply.catch(() => undefined);
  response = ((await requested) as [unknown, ServerResponse])[1];
  const answer = new Answer(streaming, {
    clock,
    stall_ms: 30_000,
    commit: (_job, outcome) =>
      new Promise((resolve, reject) => {
        records.push({
          outcome,
          commit: () => resolve(undefined),
          fail: () => reject(new Error('no store')),
        });
      }),
    record: (_job, outcome) => void records.push({ outcome, commit() {}, fail() {} }),
    gone: (job, reason) => dispatcher.cancel(job, reason),
    handed: (job) => dispatcher.handed(job),
    credit() {},
    position: (job) => dispatcher.lanes.position(job),
    headers: () => [],
    over() {},
  });
  const job = dispatcher.submit(jobRequest(streaming), answer);
  answer.begin(job, response);
  return { answer, job, reply };

  function read(got: Response) {
    const reader = got.body!.getReader();
    const decoder = new TextDecoder();
    const part = async () => decoder.decode((await reader.read()).value, { stream: true });
    const rest = async () => {
      let all = '';
      for (let next = await reader.read(); !next.done; next = await reader.read()) {
        all += decoder.decode(next.value, { stream: true });
      }
      return all;
    };
    return {
      status: got.status,
      headers: got.headers,
      part,
      rest,
      leave: () => reader.cancel(),
    };
  }
}

function begin(answer: Answer, job: ActiveJob, content_type: string, status = 200): Attempt {
  const attempt = newAttempt(job, 1, [...dispatcher.deps.places.tiers('m')[0]!.spots.all()][0]!, 0);
  answer.started(attempt);
  answer.head(attempt, status, [['content-type', content_type]]);
  return attempt;
}

function success(attempt: Attempt): JobEnd {
  const usage = { prompt_tokens: 1, completion_tokens: 1, cached_tokens: 0, estimated: false };
  const result = { status: 200, length: 0, usage };
  return { state: 'succeeded', code: null, message: null, attempt, result, retry_after_ms: undefined };
}

function failed(code: 'queue_timeout', message: string): JobEnd {
  return { state: 'timed_out', code, message, attempt: null, result: null, retry_after_ms: undefined };
}

function bytes(text: string): Uint8Array {
  return Buffer.from(text);
}

function jobRequest(streaming: boolean): JobRequest {
  return {
    id: `job_${Math.random()}`,
    request_id: 'req',
    key: 'key',
    model: 'm',
    operation: 'chat',
    body: bytes('{}'),
    streaming,
    add_usage: false,
    labels: {},
    session: null,
    affinity: null,
    via: [],
    traceparent: null,
    priority: 0,
  };
}

function awayNode(): NodeRecord {
  return {
    id: 'node_1',
    name: 'away',
    labels: {},
    allowed_models: [],
    state: 'online',
    cordoned: false,
    drain_deadline_at: null,
    epoch: 1,
    descriptor: {
      name: 'away',
      labels: {},
      version: '1',
      pools: [{ id: 'p', capacity: 1, capacity_from: 'config' }],
      backends: [{ id: 'b', kind: 'x', pool: 'p', models: [{ id: 'm', operations: ['chat'] }] }],
    },
    descriptor_hash: 'h',
    close_reason: null,
    created_at: 0,
    last_seen_at: 0,
    revoked_at: null,
    credentials: [],
  };
}
