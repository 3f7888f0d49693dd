import type { JobView, LimitsView, UsageRow } from '@flotilla/protocol';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import {
  chatChunk,
  DONE,
  type Handler,
  type ScriptedBackend,
  type SeenRequest,
  SSE,
} from '../support/scripted-backend.ts';
import { enrolRawNode, type RawLink, type RawNode, rawRegistration } from '../support/raw-node.ts';
import { until } from '../support/until.ts';
import { openWorld, type World } from '../support/world.ts';

/**
 * A key's limits on tokens, with real processes. The backend counts what it gives; what Flotilla says was used, what its
 * usage rows say and what the backend has counted are compared to the token.
 */
interface Asked {
  max_tokens?: number;
  stream?: boolean;
}

let world: World;
let backend: ScriptedBackend;
/** One slot, for another model: jobs there are served in their order. */
let single: ScriptedBackend;
/** Tokens that the backend has counted in answers that it sent whole. */
let counted = 0;
/** Requests whose answers wait for the test. */
let held: (() => void)[] = [];

beforeAll(async () => {
  world = await openWorld();
  backend = await world.backend(answer);
  single = await world.backend(answer, ['single']);
  const backends = [
    { url: backend.url, slots: 8 },
    { url: single.url, slots: 1 },
  ];
  await world.node({ name: 'one', backends });
}, 120_000);
afterAll(() => world?.close(), 60_000);

/** Prompts cost 7, answers nearly all that was asked for. */
const answer: Handler = (request, response) => {
  const { max_tokens = 40, stream } = JSON.parse(request.body.toString()) as Asked;
  const completion_tokens = max_tokens - (backend.requests.length % 3);
  const usage = { prompt_tokens: 7, completion_tokens, total_tokens: 7 + completion_tokens };
  counted += usage.total_tokens;
  if (stream !== true) {
    response.setHeader('content-type', 'application/json');
    const message = { role: 'assistant', content: 'Hi' };
    response.end(
      JSON.stringify({
        object: 'chat.completion',
        choices: [{ index: 0, message, finish_reason: 'stop' }],
        usage,
      }),
    );
    return;
  }
  response.writeHead(200, SSE);
  response.write(chatChunk('Hi') + chatChunk('', 'stop'));
  response.end(`data: ${JSON.stringify({ object: 'chat.completion.chunk', choices: [], usage })}\n\n${DONE}`);
};

const holding: Handler = (request, response) => {
  held.push(() => void answer(request, response));
};

async function withHandler(handler: Handler, run: () => Promise<void>): Promise<void> {
  backend.answer = handler;
  held = [];
  try {
    await run();
  } finally {
    backend.answer = answer;
    for (const finish of held.splice(0)) finish();
  }
}

async function makeKey(limits: Record<string, unknown>) {
  return world.plane.send<{ id: string; key: string }>('POST', '/api/v1/keys', { name: 'test', ...limits });
}

const limitsOf = (key: string) => world.plane.get<LimitsView>('/api/v1/usage/limits', key);
const rowsOf = async (key: string) =>
  (await world.plane.get<{ data: UsageRow[] }>('/api/v1/usage?limit=500', key)).data;
const tokensOf = (rows: UsageRow[]) =>
  rows.reduce((sum, { prompt_tokens, completion_tokens }) => sum + prompt_tokens + completion_tokens, 0);

async function ask(key: string, body: Record<string, unknown> = {}) {
  const reply = await world.plane.chat({ max_tokens: 40, ...body }, { key });
  const text = await reply.text();
  const error = reply.ok ? undefined : (JSON.parse(text) as { error: Record<string, unknown> }).error;
  return { status: reply.status, headers: reply.headers, text, code: error?.['code'], error };
}

describe('a token budget', () => {
  it('of 1,000 under 50 parallel requests is overrun by one settlement at most, and the books agree with the backend', async () => {
    const { key } = await makeKey({ token_budget: { tokens: 1000, period: 'day' } });
    counted = 0;
    const replies = [];
    while (replies.at(-1)?.code !== 'insufficient_credit') {
      const round = await Promise.all(
        Array.from({ length: 50 }, (_, index) => ask(key, { stream: index % 2 === 0 })),
      );
      replies.push(...round);
      expect(replies.length).toBeLessThan(2000);
    }
    const codes = new Set(replies.map(({ status, code }) => code ?? status));
    expect(codes).toEqual(new Set([200, 'rate_limited', 'insufficient_credit']));

    const rows = await rowsOf(key);
    const { budget } = await limitsOf(key);
    const largest = Math.max(...rows.map((row) => tokensOf([row])));
    expect(tokensOf(rows)).toBe(counted);
    expect(budget).toMatchObject({ used: counted, reserved: 0, remaining: 0 });
    expect(counted).toBeGreaterThanOrEqual(1000);
    expect(counted).toBeLessThan(1000 + largest);
    expect(rows.filter(({ outcome, estimated }) => outcome !== 'succeeded' || estimated)).toEqual([]);
    expect(rows).toHaveLength(replies.filter(({ status }) => status === 200).length);

    const refused = replies.at(-1)!;
    const tomorrow = new Date(Math.floor(Date.now() / 86_400_000 + 1) * 86_400_000).toISOString();
    expect([refused.status, refused.headers.get('x-should-retry')]).toEqual([402, 'false']);
    expect(refused.headers.get('retry-after')).toBeNull();
    expect(refused.error).toMatchObject({
      type: 'insufficient_quota',
      message: expect.stringContaining(`It renews at ${tomorrow}`),
      budget: { tokens: 1000, period: 'day', used: counted, renews_at: tomorrow },
    });
  });

  it('that is held by requests under way is a 429 for now, not a 402', async () => {
    const { key } = await makeKey({ token_budget: { tokens: 100, period: 'month' } });
    await withHandler(holding, async () => {
      const first = ask(key);
      await until('it is with the backend', () => held.length === 1);
      expect((await limitsOf(key)).budget!.remaining).toBeLessThan(40);
      const second = await ask(key);
      expect([second.status, second.code]).toEqual([429, 'rate_limited']);
      expect(Number(second.headers.get('retry-after-ms'))).toBeGreaterThan(0);
      held.shift()!();
      expect((await first).status).toBe(200);
    });
    const { budget } = await limitsOf(key);
    expect(budget).toMatchObject({ reserved: 0, used: tokensOf(await rowsOf(key)) });
    expect((await ask(key)).status).toBe(200);
  });

  it('survives kill -9: what was used is what the usage rows say, and only what was under way is free again', async () => {
    const { key } = await makeKey({ token_budget: { tokens: 150, period: 'total' } });
    const { key: empty } = await makeKey({ token_budget: { tokens: 1, period: 'total' } });
    for (const paying of [key, key, empty]) expect((await ask(paying)).status).toBe(200);
    const used = tokensOf(await rowsOf(key));
    await withHandler(holding, async () => {
      const cut = ask(key).catch(() => 'cut');
      await until('it is with the backend', () => held.length === 1);
      expect((await limitsOf(key)).budget!.reserved).toBeGreaterThan(0);
      world.plane.program().child.kill('SIGKILL');
      await world.plane.restart();
      expect(await cut).toBe('cut');
    });
    expect((await limitsOf(key)).budget).toMatchObject({ used, reserved: 0, remaining: 150 - used });
    const refused = await ask(empty);
    expect(refused.status).toBe(402);
    expect(refused.error!['message']).toContain('It does not renew');
    await until('the node is back', async () => (await world.nodes())[0]!.state === 'online');
    expect((await ask(key)).status).toBe(200);
  }, 60_000);

  it('that is raised, lowered or lifted counts at once, with what was spent before it was given', async () => {
    const { id, key } = await makeKey({});
    expect((await ask(key)).status).toBe(200);
    const used = tokensOf(await rowsOf(key));
    const change = (token_budget: unknown) =>
      world.plane.send('PATCH', `/api/v1/keys/${id}`, { token_budget });
    await change({ tokens: used, period: 'week' });
    expect((await ask(key)).status).toBe(402);
    await change({ tokens: used + 1, period: 'week' });
    expect((await ask(key)).status).toBe(200);
    await change({ tokens: 10, period: 'total' });
    expect((await ask(key)).status).toBe(402);
    await change(null);
    expect((await ask(key)).status).toBe(200);
  });

  it('pays once for a request that failed over, and nothing for one that was refused before it was work', async () => {
    const { key } = await makeKey({ token_budget: { tokens: 10_000, period: 'day' } });
    let failures = 0;
    const failing: Handler = (request, response) => {
      if (failures++ > 0) return answer(request, response);
      response.statusCode = 500;
      response.end('{"error":{"message":"no"}}');
    };
    counted = 0;
    await withHandler(failing, async () => expect((await ask(key)).status).toBe(200));
    const [row, ...more] = await rowsOf(key);
    expect([row?.attempts, more]).toEqual([2, []]);
    await withHandler(
      (_request, response) => void response.writeHead(500).end('{"error":{"message":"no"}}'),
      async () => expect((await ask(key)).status).toBe(502),
    );
    expect((await ask(key, { model: 'nobody-has-it' })).status).toBe(404);
    expect((await ask(key, { stream: 'yes' })).status).toBe(400);
    expect((await limitsOf(key)).budget).toMatchObject({ used: counted, reserved: 0 });
    expect(tokensOf([row!])).toBe(counted);
  });

  it('pays for what a client got before it left, marked as an estimate', async () => {
    const { key } = await makeKey({ token_budget: { tokens: 10_000, period: 'day' } });
    const endless: Handler = (_request, response) => {
      response.writeHead(200, SSE);
      response.write(chatChunk('words '.repeat(40)));
    };
    await withHandler(endless, async () => {
      const left = new AbortController();
      const reply = await world.plane.chat({ stream: true }, { key, signal: left.signal });
      await reply.body!.getReader().read();
      left.abort();
      await until('it is over', async () => (await limitsOf(key)).budget!.reserved === 0);
    });
    const rows = await until('its row is there', async () => {
      const found = await rowsOf(key);
      return found.length > 0 && found;
    });
    expect(rows.map(({ outcome, estimated }) => [outcome, estimated])).toEqual([['cancelled', true]]);
    expect(rows[0]!.completion_tokens).toBeGreaterThan(40);
    expect((await limitsOf(key)).budget!.used).toBe(tokensOf(rows));
  });
});

describe('tokens per minute', () => {
  it('are reserved before and put right after; the one too many is told when to come back', async () => {
    const { key } = await makeKey({ tokens_per_minute: 150 });
    const first = await ask(key);
    expect(first.status).toBe(200);
    const { tokens } = await limitsOf(key);
    const [row] = await rowsOf(key);
    // A moment has filled a little of it up again.
    expect(tokens!.limit).toBe(150);
    expect(tokens!.remaining).toBeGreaterThanOrEqual(150 - tokensOf([row!]));
    expect(tokens!.remaining).toBeLessThan(150);

    const refused = await until('the minute is used up', async () => {
      const reply = await ask(key);
      return reply.status !== 200 && reply;
    });
    expect([refused.status, refused.code]).toEqual([429, 'rate_limited']);
    const wait_ms = Number(refused.headers.get('retry-after-ms'));
    expect(wait_ms).toBeGreaterThan(0);
    expect(wait_ms).toBeLessThanOrEqual(60_000);
    expect(refused.headers.get('retry-after')).toBe(String(Math.ceil(wait_ms / 1000)));
  });
});

describe('x-ratelimit headers', () => {
  const NAMES = ['limit', 'remaining', 'reset'].flatMap((name) =>
    ['requests', 'tokens'].map((kind) => `x-ratelimit-${name}-${kind}`),
  );
  const told = (headers: Headers) => NAMES.filter((name) => headers.get(name) !== null);

  it("are on every answer of /v1 to a key with limits, in OpenAI's form", async () => {
    const { key } = await makeKey({ requests_per_minute: 100, tokens_per_minute: 10_000 });
    const get = (path: string) =>
      fetch(`${world.plane.url}${path}`, { headers: { authorization: `Bearer ${key}` } });
    const replies = [
      await get('/v1/models'),
      await get('/v1/models/scripted'),
      await get('/v1/models/none'),
      await ask(key),
      await ask(key, { stream: true }),
      await ask(key, { model: 'none' }),
      await ask(key, { stream: 'yes' }),
    ];
    for (const { headers } of replies) {
      expect(told(headers)).toEqual(NAMES);
      expect(headers.get('x-ratelimit-limit-tokens')).toBe('10000');
      expect(headers.get('x-ratelimit-reset-tokens')).toMatch(/^(\d+ms|(\d+m)?[\d.]+s)$/);
    }
    expect((await get('/api/v1/whoami')).headers.get('x-ratelimit-limit-tokens')).toBeNull();
  });

  it('are not there where there is no limit', async () => {
    const { key } = await makeKey({});
    expect(told((await ask(key)).headers)).toEqual([]);
  });
});

describe('what is left', () => {
  it('is told to the key itself and to an admin, and to nobody else', async () => {
    const mine = await makeKey({ concurrency: 3, token_budget: { tokens: 500, period: 'month' } });
    const other = await makeKey({});
    expect(await limitsOf(mine.key)).toEqual({
      key: mine.id,
      requests: null,
      tokens: null,
      concurrency: { limit: 3, in_use: 0 },
      budget: {
        tokens: 500,
        period: 'month',
        used: 0,
        reserved: 0,
        remaining: 500,
        period_started_at: expect.stringMatching(/-01T00:00:00.000Z$/),
        renews_at: expect.stringMatching(/-01T00:00:00.000Z$/),
      },
    });
    const path = `/api/v1/usage/limits?key=${mine.id}`;
    expect(await world.plane.get(path)).toMatchObject({ key: mine.id });
    await expect(world.plane.get(path, other.key)).rejects.toThrow('404');
  });
});

describe('slots under load', () => {
  const SLOT_MS = 40;

  it('are shared by keys, not by requests: who asks one at a time does not wait behind another key that floods', async () => {
    const flood = await makeKey({});
    const quiet = await makeKey({});
    const slow: Handler = (request: SeenRequest, response) =>
      void setTimeout(() => void answer(request, response), SLOT_MS);
    await withHandler(slow, async () => {
      const flooding = Array.from({ length: 200 }, () => ask(flood.key));
      await until('the flood waits', () => backend.in_flight === 8);
      for (let asked = 0; asked < 9; asked++) expect((await ask(quiet.key)).status).toBe(200);
      expect((await Promise.all(flooding)).every(({ status }) => status === 200)).toBe(true);
    });
    const waits = async (key: string) => {
      const rows = await until('the rows are there', async () => rowsOf(key));
      return rows.map(({ queue_ms }) => queue_ms).sort((a, b) => a - b);
    };
    const [mine, theirs] = [await waits(quiet.key), await waits(flood.key)];
    const median = (sorted: number[]) => sorted[Math.floor(sorted.length / 2)]!;
    expect(median(mine)).toBeLessThan(median(theirs) / 3);
  });
});

const line = (name: string) => ({
  model: 'single',
  request: { messages: [{ role: 'user', content: name }], max_tokens: 10 },
});

describe('a detached job', () => {
  let waiting: (() => void)[] = [];
  afterEach(() => {
    single.answer = answer;
    for (const finish of waiting) finish();
    waiting = [];
  });

  it('reserves what it may cost until it has ended, or is cancelled, and only once however often it is sent', async () => {
    const { key } = await makeKey({ scopes: ['jobs'], token_budget: { tokens: 1000, period: 'day' } });
    const send = (name: string) =>
      world.plane.send<{ data: { id: string }[] }>(
        'POST',
        '/api/v1/jobs/batch',
        { jobs: [{ ...line(name), idempotency_key: name }] },
        key,
      );
    const budget = async () => (await limitsOf(key)).budget!;
    single.answer = (request, response) => void waiting.push(() => void answer(request, response));

    await send('done');
    await until('it is with the backend', () => waiting.length === 1);
    const { reserved } = await budget();
    expect(reserved).toBeGreaterThan(10);
    await send('done');
    expect(await budget()).toMatchObject({ used: 0, reserved });
    waiting.shift()!();
    await until('it is settled', async () => (await budget()).reserved === 0);
    const used = tokensOf(await rowsOf(key));
    expect(used).toBeGreaterThan(7);
    expect((await budget()).used).toBe(used);

    const left = (await send('left')).data[0]!.id;
    await until('it is with the backend', () => waiting.length === 1);
    for (let times = 0; times < 2; times++) {
      const job = await world.plane.send('POST', `/api/v1/jobs/${left}/cancel`, {}, key);
      expect(job).toMatchObject({ state: 'cancelled' });
    }
    // The backend was asked: its prompt counts, by its bytes.
    const row = await until('it counts', async () => {
      const found = (await rowsOf(key)).find(({ job }) => job === left)!;
      return found.prompt_tokens > 10 && found;
    });
    expect(row).toMatchObject({ outcome: 'cancelled', completion_tokens: 0, estimated: true });
    await until('its key has paid', async () => (await budget()).used === used + row.prompt_tokens);
    expect(await budget()).toMatchObject({ reserved: 0 });
  });

  it('has no place among the requests at once: a batch is accepted whole, however few of them its key may have', async () => {
    const { key } = await makeKey({ scopes: ['jobs'], concurrency: 1 });
    const jobs = ['one', 'two', 'three'].map(line);
    const path = '/api/v1/jobs/batch';
    const { data } = await world.plane.send<{ data: { state?: string }[] }>('POST', path, { jobs }, key);
    expect(data.map(({ state }) => state)).toEqual(['queued', 'queued', 'queued']);
    expect((await limitsOf(key)).concurrency).toEqual({ limit: 1, in_use: 0 });
  });

  it('that was accepted is told again to who sends it again, however little is left, and counts once', async () => {
    const { key } = await makeKey({ scopes: ['jobs'], requests_per_minute: 2 });
    const jobs = ['one', 'two', 'three'].map((name) => ({ ...line(name), idempotency_key: name }));
    type Verdict = { id?: string; existing?: boolean; error?: { code: string } };
    const send = async (lines: object[]) =>
      (await world.plane.send<{ data: Verdict[] }>('POST', '/api/v1/jobs/batch', { jobs: lines }, key)).data;
    const first = await send([...jobs, jobs[0]!]);
    expect(first).toMatchObject([
      { existing: false },
      { existing: false },
      { error: { code: 'rate_limited' } },
      // The same again, while the first of it is on its way into the store.
      { id: first[0]!.id, existing: true },
    ]);
    expect(await send(jobs)).toMatchObject([
      { id: first[0]!.id, existing: true },
      { id: first[1]!.id, existing: true },
      { error: { code: 'rate_limited' } },
    ]);
    expect(await send([{ ...line('another'), idempotency_key: 'one' }])).toMatchObject([
      { error: { code: 'conflict' } },
    ]);
  });
});

describe('a detached job that gives no result', () => {
  const COUNT = { prompt_tokens: 11, completion_tokens: 22, cached_tokens: 0, estimated: false };
  let node: RawNode;
  let link: RawLink;
  beforeAll(async () => {
    node = await enrolRawNode(world, 'teller');
    link = await node.join();
    link.beats(100);
  });
  afterAll(() => link?.close());

  /** A job of a key of its own, which the node works on. */
  async function running(more: Record<string, unknown> = {}, begun = true) {
    const { key } = await makeKey({
      scopes: ['jobs'],
      tokens_per_minute: 1_000_000,
      token_budget: { tokens: 1000, period: 'total' },
    });
    const offered = link.next('job.offer');
    const body = { ...line('x'), model: 'teller', ...more };
    const { id } = await world.plane.send<{ id: string }>('POST', '/api/v1/jobs', body, key);
    const { job, attempt, stream } = await offered;
    const fence = { job, attempt };
    link.send({ type: begun ? 'job.started' : 'job.accepted', ...fence });
    const show = () => world.plane.get<JobView>(`/api/v1/jobs/${id}`, key);
    // What is soon over may never be seen to run.
    const seen = begun && more['run_timeout_ms'] === undefined;
    if (seen) await until('it runs', async () => (await show()).state === 'running');
    return {
      key,
      fence,
      stream,
      cancel: () => world.plane.send('POST', `/api/v1/jobs/${id}/cancel`, {}, key),
      row: () =>
        until('it has its row', async () => {
          const [row, ...others] = await rowsOf(key);
          expect(others).toEqual([]);
          return row;
        }),
    };
  }
  type Running = Awaited<ReturnType<typeof running>>;

  async function expectCost({ key, row }: Running, outcome: string): Promise<void> {
    await until('the node’s word counts', async () => !(await row()).estimated);
    expect(await row()).toMatchObject({ outcome, ...COUNT, attempts: 1 });
    await until('its key has paid', async () => (await limitsOf(key)).budget!.used === 33);
    const { budget, tokens } = await limitsOf(key);
    expect(budget).toMatchObject({ reserved: 0, remaining: 967 });
    // A moment fills it up again, and the estimate would be far from it.
    expect(tokens!.remaining).toBeGreaterThanOrEqual(1_000_000 - 33);
  }

  it('costs what its node says it has used once it was cancelled, however often that is said', async () => {
    const job = await running();
    const told = link.next('job.cancel');
    await job.cancel();
    await told;
    const before = await job.row();
    expect(before).toMatchObject({ completion_tokens: 0, estimated: true });
    expect((await limitsOf(job.key)).budget).toMatchObject({ used: before.prompt_tokens, reserved: 0 });
    const released = { type: 'job.released', ...job.fence, started: true };
    link.send({ ...released, usage: COUNT });
    link.send({ ...released, usage: COUNT });
    link.send({ ...released, usage: { ...COUNT, prompt_tokens: 500 } });
    // What is said of the next one is heard after it.
    const next = await running();
    await next.cancel();
    link.send({ type: 'job.released', ...next.fence, started: true, usage: COUNT });
    await expectCost(next, 'cancelled');
    await expectCost(job, 'cancelled');
  });

  it('costs what its node says when its time was over', async () => {
    const told = link.next('job.cancel');
    const job = await running({ run_timeout_ms: 300 });
    await told;
    const message = 'The work ran longer than its 0.3 s.';
    const failed = { type: 'job.failed', ...job.fence, code: 'run_timeout', message, retryable: false };
    link.send({ ...failed, usage: COUNT });
    await expectCost(job, 'run_timeout');
    expect((await job.row()).status).toBe(504);
  });

  it('costs what its node says when its backend failed, and nothing where that got nothing', async () => {
    const failed = { type: 'job.failed', code: 'backend_error', message: 'ill', retryable: false };
    const [job, nothing] = [await running(), await running()];
    link.send({ ...failed, ...job.fence, usage: COUNT });
    await expectCost(job, 'backend_error');
    link.send({ ...failed, ...nothing.fence });
    expect(tokensOf([await nothing.row()])).toBe(0);
  });

  it('costs by its bytes where its node does not say', async () => {
    const job = await running();
    const told = link.next('job.cancel');
    const answer = JSON.stringify({ text: 'words '.repeat(40) });
    link.frame(2, job.stream, 0, JSON.stringify({ status: 200, headers: {} }));
    link.frame(3, job.stream, 0, answer);
    const ack = link.next('node.heartbeat.ack');
    link.beat();
    await ack;
    await job.cancel();
    await told;
    const { prompt_tokens } = await job.row();
    link.send({ type: 'job.released', ...job.fence, started: true });
    const row = await until('its answer counts', async () => {
      const found = await job.row();
      return found.completion_tokens > 0 && found;
    });
    const completion_tokens = Math.ceil(answer.length / 4);
    expect(row).toMatchObject({ prompt_tokens, completion_tokens, estimated: true });
    await until('its key has paid', async () => (await limitsOf(job.key)).budget!.used === tokensOf([row]));
  });

  it('costs its prompt where its backend was asked, though nobody had heard of it by then', async () => {
    const told = link.next('job.cancel');
    const job = await running({}, false);
    await job.cancel();
    await told;
    expect(tokensOf([await job.row()])).toBe(0);
    link.send({ type: 'job.released', ...job.fence, started: true });
    await until('its prompt counts', async () => (await job.row()).prompt_tokens > 10);
    expect(await job.row()).toMatchObject({ completion_tokens: 0, estimated: true });
  });

  it('costs the same, and open ones keep what they reserve, when the control plane dies meanwhile', async () => {
    const [cancelled, open] = [await running(), await running()];
    await world.plane.send('POST', `/api/v1/nodes/${node.id}/cordon`, {});
    const body = { ...line('x'), model: 'teller' };
    const { id } = await world.plane.send<{ id: string }>('POST', '/api/v1/jobs', body, open.key);
    link.close();
    await cancelled.cancel();
    const { reserved } = (await limitsOf(open.key)).budget!;
    world.plane.program().child.kill('SIGKILL');
    await world.plane.restart();
    const items = [cancelled, open].map(({ fence }) => ({ ...fence, owner: 'store', state: 'running' }));
    const inventory = items.map((item) => ({
      ...item,
      backend: 'backend',
      body_offset: 0,
      stream_offset: 0,
    }));
    link = await node.dial();
    const verdicts = link.next('inventory.verdicts');
    link.send(rawRegistration('teller', { inventory }));
    link.beats(100);
    expect((await verdicts).verdicts).toMatchObject([{ verdict: 'abandon' }, { verdict: 'keep' }]);
    expect((await limitsOf(open.key)).budget).toMatchObject({ used: 0, reserved });
    const larger = { ...body, request: { ...body.request, max_tokens: 1000 } };
    await expect(world.plane.send('POST', '/api/v1/jobs', larger, open.key)).rejects.toThrow('rate_limited');

    link.send({ type: 'job.released', ...cancelled.fence, started: true, usage: COUNT });
    await expectCost(cancelled, 'cancelled');
    expect((await limitsOf(open.key)).budget).toMatchObject({ used: 0, reserved });

    await world.plane.send('POST', `/api/v1/jobs/${id}/cancel`, {}, open.key);
    await open.cancel();
    link.send({ type: 'job.released', ...open.fence, started: true, usage: COUNT });
    await until('its key has paid', async () => (await limitsOf(open.key)).budget!.used === 33);
    expect((await limitsOf(open.key)).budget).toMatchObject({ reserved: 0 });
    await until('the other node is back', async () =>
      (await world.nodes()).every((one) => one.state === 'online'),
    );
  }, 60_000);
});

describe('the order of detached jobs', () => {
  const LONG_MS = 250;
  const nameOf = (request: SeenRequest) =>
    (JSON.parse(request.body.toString()) as { messages: { content: string }[] }).messages[0]!.content;

  async function send(key: string, lines: Record<string, unknown>[]): Promise<string[]> {
    type Verdicts = { data: { id: string }[] };
    const { data } = await world.plane.send<Verdicts>('POST', '/api/v1/jobs/batch', { jobs: lines }, key);
    return data.map(({ id }) => id);
  }

  const allEnded = (key: string) =>
    until('all have ended', async () => {
      const { data } = await world.plane.get<{ data: JobView[] }>('/api/v1/jobs?limit=100', key);
      return data.every(({ finished_at }) => finished_at !== null);
    });

  /** @returns the names of jobs that were sent while the slot was taken, as they were served */
  async function servedAfter(sent: () => Promise<string[]>): Promise<string[]> {
    const filler = await makeKey({ scopes: ['jobs'] });
    const { promise: open, resolve: release } = Promise.withResolvers<void>();
    single.answer = (request, response) => void open.then(() => answer(request, response));
    await send(filler.key, [line('filler')]);
    await until('the slot is taken', () => single.in_flight === 1);
    const before = single.requests.length;
    const keys = await sent();
    release();
    for (const key of keys) await allEnded(key);
    return single.requests.slice(before).map(nameOf);
  }

  it('counts how long a key’s jobs hold their slots', async () => {
    const long = await makeKey({ scopes: ['jobs'] });
    const short = await makeKey({ scopes: ['jobs'] });
    single.answer = (request, response) =>
      void setTimeout(() => void answer(request, response), nameOf(request) === 'long' ? LONG_MS : 0);
    await send(
      long.key,
      Array.from({ length: 3 }, () => line('long')),
    );
    await send(
      short.key,
      Array.from({ length: 3 }, () => line('short')),
    );
    for (const { key } of [long, short]) await allEnded(key);

    const served = await servedAfter(async () => {
      await send(
        long.key,
        Array.from({ length: 4 }, (_, place) => line(`long ${place}`)),
      );
      await send(
        short.key,
        Array.from({ length: 4 }, (_, place) => line(`short ${place}`)),
      );
      return [long.key, short.key];
    });
    expect(served.indexOf('short 3')).toBeLessThan(served.indexOf('long 1'));
  });

  it('is not moved by lines that were sent before', async () => {
    const again = await makeKey({ scopes: ['jobs'] });
    const other = await makeKey({ scopes: ['jobs'] });
    const lines = [1, 2, 3].map((place) => ({ ...line(`first ${place}`), idempotency_key: `line-${place}` }));
    const served = await servedAfter(async () => {
      const ids = await send(again.key, lines);
      for (let times = 0; times < 4; times++) expect(await send(again.key, lines)).toEqual(ids);
      await send(
        other.key,
        Array.from({ length: 8 }, (_, place) => line(`other ${place}`)),
      );
      await send(again.key, [line('later')]);
      return [again.key, other.key];
    });
    expect(served.indexOf('later')).toBeLessThan(served.indexOf('other 6'));
  });
});
