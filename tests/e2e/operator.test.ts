import { once } from 'node:events';
import { cp, readFile, rm } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { join } from 'node:path';
import type { ErrorBody, ExplainView, JobView, KeyView, UsageRow } from '@flotilla/protocol';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { WebSocket } from 'ws';
import { run } from '../../packages/cli/src/testing/command.ts';
import { type Program, flotilla } from '../support/program.ts';
import { chatAnswer, chatChunk, DONE, SSE, type SeenRequest } from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';
import { type TestNode, type World, openWorld } from '../support/world.ts';

/**
 * What an operator does to a fleet, through the API and with real daemons. `box` and `spare` both serve `scripted`;
 * each request is held until its test answers it, so that where it runs, and what happens meanwhile, is the test's.
 */
let world: World;
let box: TestNode;
let spare: TestNode;
const SLOTS = 2;
const held: Held[] = [];
const programs: Program[] = [];

interface Held {
  node: string;
  request: SeenRequest;
  response: ServerResponse;
}

beforeAll(async () => {
  // A link that is made anew, and a second daemon's start, must fit into a lease of 3 H.
  world = await openWorld({ heartbeat_ms: 2000 });
  [box, spare] = await Promise.all([
    startNode('box', ['scripted', 'box-only']),
    startNode('spare', ['scripted']),
  ]);
}, 60_000);
afterAll(async () => {
  await Promise.all(programs.map((program) => program.stop()));
  await world.close();
});
afterEach(async () => {
  await until('nothing runs', async () => {
    for (const { response } of held.splice(0)) response.destroy();
    return (await openJobs()).length === 0;
  });
  for (const node of [box, spare]) {
    await operate(node, 'uncordon');
    await allow(node, []);
  }
});

async function startNode(name: string, models: string[], slots = SLOTS): Promise<TestNode> {
  const backend = await world.backend((request, response) => {
    held.push({ node: name, request, response });
  }, models);
  return world.node({ name, backends: [{ url: backend.url, slots }] });
}

/** The first request that is with a backend, or with this node's. */
const taken = (node?: TestNode) =>
  until(`${node?.name ?? 'a node'} has the request`, () => {
    const at = held.findIndex((one) => node === undefined || one.node === node.name);
    return at === -1 ? undefined : held.splice(at, 1)[0];
  });
function finish({ response }: Held, text = 'well'): void {
  response.setHeader('content-type', 'application/json');
  response.end(chatAnswer(text));
}
function startStream({ response }: Held): void {
  response.writeHead(200, SSE);
  response.write(chatChunk('first'));
}
function endStream({ response }: Held): void {
  response.end(chatChunk(' last', 'stop') + DONE);
}

/** A request is served, and by this node. */
async function servedBy(node: TestNode, model = 'scripted'): Promise<void> {
  const reply = world.plane.chat({ model });
  finish(await taken(node));
  expect((await reply).status).toBe(200);
}

const operate = <T = unknown>(node: TestNode, verb: string, body?: unknown) =>
  world.plane.send<T>('POST', `/api/v1/nodes/${node.id}/${verb}`, body);
const allow = (node: TestNode, allowed_models: string[]) =>
  world.plane.send('PATCH', `/api/v1/nodes/${node.id}`, { allowed_models });
const openJobs = async () =>
  (await world.plane.get<{ data: JobView[] }>('/api/v1/jobs?limit=100')).data.filter(
    (job) => job.finished_at === null,
  );
const waiting = (model = 'scripted') =>
  until('it waits', async () =>
    (await openJobs()).find((job) => job.state === 'queued' && job.model === model),
  );

/** Reads a streamed answer until it has its first piece; the rest is read to its end. */
async function readStream(reply: Response): Promise<{ rest: Promise<string> }> {
  const reader = reply.body!.pipeThrough(new TextDecoderStream()).getReader();
  let text = (await reader.read()).value ?? '';
  const rest = async () => {
    for (let next = await reader.read(); !next.done; next = await reader.read()) text += next.value;
    return text;
  };
  return { rest: rest() };
}

/** `<status> <code>` of an answer. */
async function told(reply: Response): Promise<string> {
  const { error } = (await reply.json()) as Partial<ErrorBody>;
  return `${reply.status} ${error?.code ?? 'ok'}`;
}

describe('a cordoned node', () => {
  it('finishes what runs, is given nothing new and says why; uncordoned it serves at once', async () => {
    const running = world.plane.chat({ model: 'box-only' });
    const first = await taken(box);
    await operate(box, 'cordon');
    const view = await box.view();
    expect(view).toMatchObject({ state: 'online', cordoned: true, drain: null });
    expect(view.why.summary).toMatch(/it is cordoned/);
    const refused = await world.plane.chat({ model: 'box-only' });
    expect(refused.status).toBe(503);
    const { error } = (await refused.json()) as ErrorBody;
    expect(error).toMatchObject({ code: 'no_capacity', reasons: ['cordoned'] });
    await servedBy(spare);
    await operate(spare, 'drain');
    // Of several nodes a client hears the reasons, not which node has which; nor as if they were one node's.
    const nobody = await run(['chat', '-m', 'scripted', 'Hello'], {
      FLOTILLA_URL: world.plane.url,
      FLOTILLA_API_KEY: world.plane.admin_key,
    });
    expect(nobody.stderr).toMatch(
      /each is kept from it by one or more of these: it is \w+; it is \w+\. \(no_cap/,
    );
    await operate(spare, 'uncordon');
    finish(first);
    expect((await running).status).toBe(200);

    await operate(box, 'uncordon');
    await servedBy(box, 'box-only');
  });
});

describe('a job that no node can take', () => {
  it('is explained with a verdict on every node, and runs where the reason goes away', async () => {
    await operate(box, 'cordon');
    const running = Array.from({ length: SLOTS }, () => world.plane.chat({}));
    const first = [await taken(spare), await taken(spare)];
    const key = await world.key({ scopes: ['inference', 'jobs'] });
    const next = world.plane.chat({}, { key });
    const job = await waiting();
    expect(job).toMatchObject({ position: 0, attempts: [] });
    const explain = (as?: string) => world.plane.get<ExplainView>(`/api/v1/jobs/${job.id}/explain`, as);
    const verdicts = async () => (await explain()).nodes.map(({ name, verdict }) => `${name}: ${verdict}`);

    expect((await explain()).summary).toBe('It waits for scripted; 0 of 2 nodes could take it now.');
    expect((await verdicts()).sort()).toEqual(['box: cordoned', 'spare: full']);
    // Its own key reads the same without learning which machines there are.
    const own = JSON.stringify(await explain(key));
    for (const reason of ['it is cordoned', 'all its slots are taken']) expect(own).toContain(reason);
    expect(own).not.toMatch(/box|spare|node_/);

    await allow(box, ['box-only']);
    expect((await verdicts()).sort()).toEqual(['box: not_allowed', 'spare: full']);
    await operate(box, 'uncordon');
    expect((await verdicts()).sort()).toEqual(['box: not_allowed', 'spare: full']);
    expect(held).toEqual([]);
    await allow(box, []);
    finish(await taken(box));
    expect(await told(await next)).toBe('200 ok');
    for (const one of first) finish(one);
    await Promise.all(running);
  });
});

describe("a node's list of models", () => {
  it('keeps all others from being served there, and from being known where nobody else has them', async () => {
    const models = async () =>
      (await world.plane.get<{ data: { id: string }[] }>('/v1/models')).data.map(({ id }) => id);
    expect(await models()).toContain('box-only');
    await allow(box, ['script*']);
    expect(await models()).toEqual(['scripted']);
    expect(await told(await world.plane.chat({ model: 'box-only' }))).toBe('404 model_not_found');
    const { models: shown } = (await box.view()).backends[0]!;
    expect(shown.map(({ id, allowed }) => `${id}: ${allowed}`).sort()).toEqual([
      'box-only: false',
      'scripted: true',
    ]);
    await operate(spare, 'cordon');
    await servedBy(box);
    await allow(box, []);
    expect(await models()).toContain('box-only');
  });
});

describe('a drained node', () => {
  it('finishes what it can by the deadline; then the rest moves, or ends honestly where its client has part of it', async () => {
    await operate(spare, 'cordon');
    const quick = world.plane.chat({ model: 'box-only' });
    const first = await taken(box);
    const begun = world.plane.chat({ stream: true });
    const stream = await taken(box);
    startStream(stream);
    const { rest } = await readStream(await begun);
    await operate(spare, 'uncordon');
    const drained = await operate<{ drain: unknown }>(box, 'drain', { deadline_ms: 1500 });
    expect(drained).toMatchObject({ state: 'online', cordoned: true, drain: { in_flight: 2 } });
    expect((await box.view()).why.summary).toMatch(/it is being drained/);
    const refused = (await (await world.plane.chat({ model: 'box-only' })).json()) as ErrorBody;
    expect(refused.error).toMatchObject({ code: 'no_capacity', reasons: ['draining'] });
    finish(first);
    expect((await quick).headers.get('x-flotilla-attempts')).toBe('1');
    expect((await box.view()).drain).toMatchObject({ in_flight: 1 });

    const text = await rest;
    expect(text).toContain('"code":"node_lost"');
    expect(text).not.toContain('[DONE]');
    await until('the backend is free', () => stream.request.aborted_ms);
    await servedBy(spare);
    await operate(box, 'uncordon');
    expect(await box.view()).toMatchObject({ cordoned: false, drain: null });
  });

  it('hands what has sent nothing to another node, unseen by the client', async () => {
    await operate(spare, 'cordon');
    const reply = world.plane.chat({});
    const first = await taken(box);
    await operate(spare, 'uncordon');
    await operate(box, 'drain', { deadline_ms: 0 });
    finish(await taken(spare), 'from the spare');
    const answer = await reply;
    expect(answer.headers.get('x-flotilla-attempts')).toBe('2');
    expect(await answer.text()).toBe(chatAnswer('from the spare'));
    await until('the backend is free', () => first.request.aborted_ms);
  });
});

describe('a new credential', () => {
  it('is handed to the running daemon, and its work goes on; the old one is refused after the overlap', async () => {
    const old = await credentialOf(box);
    const { epoch } = await box.view();
    await operate(spare, 'cordon');
    const reply = world.plane.chat({ stream: true });
    const stream = await taken(box);
    startStream(stream);
    const { rest } = await readStream(await reply);

    const admin = { FLOTILLA_URL: world.plane.url, FLOTILLA_API_KEY: world.plane.admin_key };
    const rotated = await run(['nodes', 'rotate', 'box', '--overlap', '6s'], admin);
    expect(rotated.stdout).toMatch(/^fln_[\w-]{43}\n$/);
    expect(await dial(old)).toBe('open');
    const handed = await run(['node', 'credential', '--state-dir', box.state_dir], {}, rotated.stdout);
    expect(handed).toMatchObject({ code: 0, stdout: '' });
    await until('it has a new link', async () => (await box.view()).epoch > epoch);
    expect(await credentialOf(box)).toBe(rotated.stdout.trim());
    await until('the old one is refused', async () => (await dial(old)) === '403 revoked');
    endStream(stream);
    expect(await rest).toBe(chatChunk('first') + chatChunk(' last', 'stop') + DONE);
    expect(await box.view()).toMatchObject({ state: 'online', epoch: epoch + 1 });
  });

  const credentialOf = async ({ state_dir }: TestNode) =>
    (JSON.parse(await readFile(join(state_dir, 'credential'), 'utf8')) as { credential: string }).credential;
});

describe('a second daemon with the credential of the first', () => {
  it('is told so and harms nobody; the operator sees an alarm', async () => {
    const { epoch } = await spare.view();
    const copy = await startCopy(spare);
    await until('it is told', () => /Another daemon with this credential is connected/.test(copy.output()));
    const alarms = ['A second daemon tried to connect with this credential.'];
    expect(await spare.view()).toMatchObject({ state: 'online', epoch, why: { alarms } });
    await operate(box, 'cordon');
    await servedBy(spare);
    copy.signal('SIGKILL');
    await copy.ended;
  });

  it('takes over from one that is silent, which stops for good when it wakes', async () => {
    const { epoch } = await spare.view();
    const copy = await startCopy(spare);
    // Silent just before the copy dials: after its lease it would be told that, and not that it was superseded.
    await until('it is about to dial', () => /status server listens/.test(copy.output()));
    spare.program().signal('SIGSTOP');
    await until('it is in', async () => {
      const view = await spare.view();
      return view.epoch > epoch && view.health === 'healthy';
    });
    spare.program().signal('SIGCONT');
    expect((await spare.program().ended).code).toBe(3);
    expect(spare.output()).toMatch(/stops for good: A newer daemon with this node's credential took over/);
    await operate(box, 'cordon');
    await servedBy(spare);
    await copy.stop();
    await spare.restart();
    await until('it is back', async () => (await spare.view()).state === 'online');
  });
});

describe('a revoked node', () => {
  let lost: TestNode;
  beforeAll(async () => {
    lost = await startNode('lost', ['scripted', 'lost-only']);
  });

  it('is cut off at once, and its daemon stops for good, saying why; its work moves and its results are refused', async () => {
    await Promise.all([operate(box, 'cordon'), operate(spare, 'cordon')]);
    const replies = [world.plane.chat({}), world.plane.chat({ model: 'lost-only' })];
    const first = [await taken(lost), await taken(lost)];
    await operate(box, 'uncordon');
    expect(await told(await remove(lost))).toBe('409 conflict');
    const revoked = await operate<{ state: string; connected_at: null }>(lost, 'revoke');
    expect(revoked).toMatchObject({ state: 'revoked', connected_at: null });
    for (const one of first) finish(one, 'too late');
    finish(await taken(box), 'from the box');
    expect(await (await replies[0]!).text()).toBe(chatAnswer('from the box'));
    expect(await told(await replies[1]!)).toBe('503 no_capacity');
    expect((await lost.program().ended).code).toBe(3);
    expect(lost.output()).toMatch(/This node stops for good: This node's credential was revoked\./);
    expect(await lost.view()).toMatchObject({ state: 'revoked', pools: [{ reserved: 0 }] });
  });

  it('is not let in again', async () => {
    await lost.restart();
    expect((await lost.program().ended).code).toBe(3);
    expect((await lost.view()).state).toBe('revoked');
    expect(await told(await world.plane.chat({ model: 'lost-only' }))).toBe('404 model_not_found');
  });

  it('is forgotten when it is deleted, and its name is free again', async () => {
    expect((await remove(lost)).status).toBe(204);
    expect(await told(await remove(lost))).toBe('404 not_found');
    expect((await world.nodes()).map(({ name }) => name)).not.toContain('lost');
    const { token } = await makeToken();
    expect(await enrol(token, 'lost')).toBe('201 ok');
  });

  const remove = (node: TestNode) => api('DELETE', `/api/v1/nodes/${node.id}`);
});

describe("a key's limits", () => {
  const ask = (key: string, model = 'scripted') => world.plane.chat({ model }, { key });
  const rates = (reply: Response) =>
    ['limit', 'remaining', 'reset'].map((name) => reply.headers.get(`x-ratelimit-${name}-requests`));

  it('models: what it may not use does not exist for it', async () => {
    const key = await world.key({ allowed_models: ['box-*'] });
    const { data } = await world.plane.get<{ data: { id: string }[] }>('/v1/models', key);
    expect(data.map(({ id }) => id)).toEqual(['box-only']);
    expect(await told(await ask(key))).toBe('404 model_not_found');
    const reply = ask(key, 'box-only');
    finish(await taken(box));
    expect((await reply).status).toBe(200);
  });

  it('requests a minute: the one too many is refused with the time to wait, and costs nobody anything', async () => {
    const key = await world.key({ requests_per_minute: 2 });
    for (const left of ['1', '0']) {
      const reply = ask(key);
      finish(await taken());
      expect(rates(await reply).slice(0, 2)).toEqual(['2', left]);
    }
    const refused = await ask(key);
    expect(rates(refused).slice(0, 2)).toEqual(['2', '0']);
    expect(rates(refused)[2]).toMatch(/^[\d.]+s$/);
    const wait_ms = Number(refused.headers.get('retry-after-ms'));
    expect(wait_ms).toBeGreaterThan(20_000);
    expect(wait_ms).toBeLessThanOrEqual(30_000);
    expect(refused.headers.get('retry-after')).toBe(String(Math.ceil(wait_ms / 1000)));
    expect(await told(refused)).toBe('429 rate_limited');
    expect(held).toEqual([]);
  });

  it('requests at once: the one too many is refused, says what is left, and leaves its rate alone', async () => {
    const key = await world.key({ concurrency: 1, requests_per_minute: 60 });
    const first = ask(key);
    const running = await taken();
    const refused = await ask(key);
    expect(rates(refused).slice(0, 2)).toEqual(['60', '59']);
    expect(Number(refused.headers.get('retry-after-ms'))).toBeGreaterThan(0);
    expect(await told(refused)).toBe('429 rate_limited');
    finish(running);
    await (await first).text();
    const next = ask(key);
    finish(await taken());
    expect(rates(await next).slice(0, 2)).toEqual(['60', '58']);
  });

  it('ends within a second of its revocation; what runs already may finish', async () => {
    const made = await makeKey();
    const reply = ask(made.key);
    const running = await taken();
    const revoked_ms = performance.now();
    await api('DELETE', `/api/v1/keys/${made.id}`);
    expect(await told(await ask(made.key))).toBe('403 revoked');
    expect(performance.now() - revoked_ms).toBeLessThan(1000);
    finish(running);
    expect((await reply).status).toBe(200);
  });
});

describe('an operator who cancels', () => {
  const cancel = (job: string, key?: string) => api('POST', `/api/v1/jobs/${job}/cancel`, undefined, key);
  const jobOn = async (model: string) => (await openJobs()).find((job) => job.model === model)!.id;

  it('a job that waits: its client is told, and no node ever had it', async () => {
    const running = Array.from({ length: SLOTS }, () => world.plane.chat({ model: 'box-only' }));
    const first = [await taken(box), await taken(box)];
    const reply = world.plane.chat({ model: 'box-only' });
    const { id } = await waiting('box-only');
    const stranger = await world.key({ scopes: ['jobs'] });
    expect(await told(await cancel(id, stranger))).toBe('404 not_found');
    expect(await (await cancel(id)).json()).toMatchObject({ state: 'cancelled', attempts: [] });
    expect(await told(await reply)).toBe('499 cancelled');
    for (const one of first) finish(one);
    for (const one of running) expect((await one).status).toBe(200);
    expect(held).toEqual([]);
  });

  it('a job that runs: its client is told, the backend is free, and once is enough', async () => {
    const key = await world.key({ scopes: ['inference', 'jobs'] });
    const reply = world.plane.chat({ model: 'box-only' }, { key });
    const running = await taken(box);
    const id = await jobOn('box-only');
    expect((await cancel(id)).status).toBe(200);
    const answer = await reply;
    expect(answer.headers.get('x-should-retry')).toBe('false');
    const { error } = (await answer.json()) as ErrorBody;
    expect(answer.status).toBe(499);
    expect(error).toMatchObject({ code: 'cancelled', message: 'Cancelled by an operator.' });
    await until('the backend is free', () => running.request.aborted_ms);
    await until('the slot is free', async () => (await box.view()).pools[0]!.reserved === 0);
    expect(await told(await cancel(id))).toBe('200 cancelled');
  });

  it('a stream: it ends with an error in it and no [DONE]', async () => {
    const reply = world.plane.chat({ model: 'box-only', stream: true });
    const stream = await taken(box);
    startStream(stream);
    const { rest } = await readStream(await reply);
    await cancel(await jobOn('box-only'));
    const text = await rest;
    expect(text).toContain('"code":"cancelled"');
    expect(text).not.toContain('[DONE]');
    await until('the backend is free', () => stream.request.aborted_ms);
  });

  it('what has ended is told that it has', async () => {
    const reply = world.plane.chat({ model: 'box-only' });
    const running = await taken(box);
    const id = await jobOn('box-only');
    finish(running);
    await (await reply).text();
    expect(await told(await cancel(id))).toBe('409 conflict');
  });
});

describe('usage', () => {
  const rowsOf = (made: KeyView, rows: number) =>
    until('it is settled', async () => {
      const { data } = await world.plane.get<{ data: UsageRow[] }>(`/api/v1/usage?key=${made.id}`);
      return data.length >= rows && data;
    });

  it('is one row for a request, however many attempts it took, with who, what, where and how long', async () => {
    const made = await makeKey();
    const sent_ms = performance.now();
    const reply = world.plane.chat({}, { key: made.key, headers: { 'x-request-id': 'mine-1' } });
    const first = await taken();
    first.response.writeHead(500).end('{"error":{"message":"no disk"}}');
    const second = await taken();
    expect(second.node).not.toBe(first.node);
    finish(second);
    const answer = await reply;
    await answer.text();
    const taken_ms = performance.now() - sent_ms;
    expect(answer.headers.get('x-flotilla-attempts')).toBe('2');
    const [row, ...more] = await rowsOf(made, 1);
    expect(more).toEqual([]);
    expect(row).toMatchObject({
      request_id: 'mine-1',
      key: made.id,
      model: 'scripted',
      operation: 'chat',
      node: second.node === 'box' ? box.id : spare.id,
      outcome: 'succeeded',
      status: 200,
      attempts: 2,
      prompt_tokens: 3,
      completion_tokens: 5,
      estimated: false,
    });
    expect(row!.first_byte_ms).toBeGreaterThan(0);
    expect(row!.total_ms).toBeGreaterThanOrEqual(row!.first_byte_ms!);
    expect(row!.total_ms).toBeLessThanOrEqual(Math.ceil(taken_ms));
    const job = await world.plane.get<JobView>(`/api/v1/jobs/${row!.job}`);
    expect(job.attempts.map(({ outcome }) => outcome)).toEqual(['backend_error', 'succeeded']);
  });

  it('tells waiting from working, and what ended without an answer', async () => {
    const made = await makeKey();
    const { key } = made;
    const running = Array.from({ length: SLOTS }, () => world.plane.chat({ model: 'box-only' }, { key }));
    const first = [await taken(box), await taken(box)];
    const waits = world.plane.chat({ model: 'box-only' }, { key });
    await waiting('box-only');
    const waiting_ms = performance.now();
    await until('it has waited', () => performance.now() - waiting_ms > 200);
    finish(first[0]!);
    finish(await taken(box));
    // One that was just finished may still be on its way into the record.
    const [job] = await until('one is left', async () => {
      const open = await openJobs();
      return open.length === 1 && open;
    });
    await api('POST', `/api/v1/jobs/${job!.id}/cancel`);
    await Promise.all([...running, waits].map(async (reply) => (await reply).text()));
    const rows = await rowsOf(made, 3);
    expect(rows.map(({ outcome, status }) => `${status} ${outcome}`).sort()).toEqual([
      '200 succeeded',
      '200 succeeded',
      '499 cancelled',
    ]);
    const queued = rows.filter(({ queue_ms }) => queue_ms >= 200);
    expect(queued).toHaveLength(1);
    expect(queued[0]!.total_ms).toBeGreaterThanOrEqual(queued[0]!.queue_ms);
  });
});

// Last, because this machine's address pays for it.
describe('a credential that is refused', () => {
  it('an enrolment token enrols one of ten who use it at once', async () => {
    const { token } = await makeToken();
    const names = Array.from({ length: 10 }, (_, index) => `racer-${index}`);
    const results = await Promise.all(names.map((name) => enrol(token, name)));
    expect(results.toSorted().slice(0, 2)).toEqual(['201 ok', '401 unauthorized']);
    const enrolled = (await world.nodes()).filter(({ name }) => name.startsWith('racer-'));
    expect(enrolled.map(({ name }) => name)).toEqual([names[results.indexOf('201 ok')]]);
  });

  it('an enrolment token that is withdrawn, or whose time is over, enrols nobody', async () => {
    const [withdrawn, expired] = [await makeToken(), await makeToken({ ttl_ms: 1 })];
    expect((await api('DELETE', `/api/v1/enrolment-tokens/${withdrawn.id}`)).status).toBe(204);
    await until('its time is over', () => Date.now() > Date.parse(expired.expires_at) + 1);
    const refused = await Promise.all([withdrawn, expired].map(({ token }) => enrol(token, 'late')));
    expect(refused).toEqual(['401 unauthorized', '401 unauthorized']);
    expect((await world.nodes()).map(({ name }) => name)).not.toContain('late');
  });

  it('lets its address wait longer and longer, and never holds up who has a valid one', async () => {
    const began_ms = performance.now();
    const order: string[] = [];
    const wrong = Array.from({ length: 10 }, async (_, index) => {
      expect(await told(await api('GET', '/api/v1/whoami', undefined, `flk_wrong-${index}`))).toBe(
        '401 unauthorized',
      );
      order.push('refused');
    });
    await until('the first of them waits', () => performance.now() - began_ms > 50);
    await world.plane.get('/api/v1/whoami');
    order.push('served');
    await Promise.all(wrong);
    expect(performance.now() - began_ms).toBeGreaterThan(900);
    expect(order.indexOf('served')).toBeLessThan(3);
  });
});

const api = (method: string, path: string, body?: unknown, key = world.plane.admin_key) =>
  fetch(`${world.plane.url}${path}`, {
    method,
    headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
    ...(body !== undefined && { body: JSON.stringify(body) }),
  });
const makeKey = () => world.plane.send<KeyView & { key: string }>('POST', '/api/v1/keys', { name: 'test' });
const makeToken = (body: Record<string, unknown> = {}) =>
  world.plane.send<{ id: string; token: string; expires_at: string }>(
    'POST',
    '/api/v1/enrolment-tokens',
    body,
  );
const enrol = async (token: string, name: string) =>
  told(await api('POST', '/node/v1/enrol', { token, name }));

/** How the node link answers this credential. */
async function dial(credential: string): Promise<string> {
  const ws = new WebSocket(`${world.plane.url.replace('http', 'ws')}/node/v1/link`, {
    headers: { authorization: `Bearer ${credential}` },
  });
  ws.on('error', () => undefined);
  const refused = once(ws, 'unexpected-response') as Promise<[unknown, IncomingMessage]>;
  const answer = await Promise.race([refused, once(ws, 'open')]);
  if (answer.length === 0) {
    ws.terminate();
    return 'open';
  }
  const response = answer[1] as IncomingMessage;
  let text = '';
  for await (const piece of response) text += String(piece);
  return `${response.statusCode} ${(JSON.parse(text) as ErrorBody).error.code}`;
}

/** Another daemon on a copy of this node's state directory, as after cloning a machine's disk. */
async function startCopy(node: TestNode): Promise<Program> {
  const state_dir = `${node.state_dir}-copy`;
  await rm(state_dir, { recursive: true, force: true });
  await cp(node.state_dir, state_dir, {
    recursive: true,
    filter: (path) => !/(control\.sock|lock|\.tmp)$/.test(path),
  });
  const program = flotilla(['node', 'run', '--state-dir', state_dir], {
    HOME: world.dir,
    FLOTILLA_NODE_STATUS_PORT: '0',
  });
  programs.push(program);
  return program;
}
